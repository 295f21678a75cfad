"""The durable queue on the device's disk."""
