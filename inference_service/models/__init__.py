"""Models: the repository, `model.yaml`, loading, running and calibration."""
