"""Forum dumps to threads: one module per format, and simulated forums with planted truth."""
