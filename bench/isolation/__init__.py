"""Isolation benchmark: one caller beside the flood of another: `python -m bench.isolation`."""
