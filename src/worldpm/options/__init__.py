"""Options of the command line: one frozen dataclass a verb, checked when it is made. Nothing heavy
is imported here."""
