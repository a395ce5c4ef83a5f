"""Options of the command line: one frozen dataclass per verb, which checks its values when it is
created. These modules import nothing heavy."""
