"""Benchmarks: items, raw rewards and metrics, one module per set. Benchmarks do not use models."""
