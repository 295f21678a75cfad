"""The client of the inference service."""
