"""Checkpoints with random weights, or none, in the layouts of published ones.

The tests write small ones, and the benchmarks those of real dimensions.
"""
