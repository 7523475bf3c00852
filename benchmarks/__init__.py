"""Benchmarks, and what they share with the tests: checkpoints and pictures."""
