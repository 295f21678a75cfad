"""Sightline on the device: detection, fallback to the cloud, and logging of predictions."""
