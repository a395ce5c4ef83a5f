"""Benchmarks: items, raw rewards and metrics, one module a set. A benchmark never sees a model."""
