"""Uploads: images that are sent once and used by reference; store, quotas and references."""
