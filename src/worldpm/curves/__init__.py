"""Parametric curves, the solver that fits them, and sudden drops in training curves."""
