"""Benchmarks: ratios against installed opponents, measured in the same run. Timings are never tests."""
