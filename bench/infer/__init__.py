"""Benchmark of `Infer` beside the same work in-process: see `__main__`."""
