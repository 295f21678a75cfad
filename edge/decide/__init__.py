"""Inference by the device or the cloud within one time budget per image."""
