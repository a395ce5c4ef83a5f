"""The whole road on a small simulated forum."""
