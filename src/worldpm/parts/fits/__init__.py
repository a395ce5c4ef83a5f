"""Curves fitted to results: forms, the solver, evidence for and against a law, compute-optimal sizes, emergence, sudden changes."""
