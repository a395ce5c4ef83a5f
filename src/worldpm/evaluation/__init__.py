"""Checkpoints to results: rewards on benchmarks and test splits, and the tests made on them."""
