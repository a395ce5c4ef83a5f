"""Benchmarks: items, raw rewards and metrics, one module per set. A benchmark never sees a
model."""
