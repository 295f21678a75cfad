"""What `Infer` costs beside the same work in-process: see `__main__`."""
