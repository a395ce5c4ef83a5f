"""Where threads come from: one module per format, and a simulated forum with planted truth."""
