"""Benchmark programs. Each prints one JSON line per result; a figure is a ratio of one run."""
