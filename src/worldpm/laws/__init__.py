"""Results to scaling laws: measurements, evidence, verdicts, compute-optimal sizes, figures."""
