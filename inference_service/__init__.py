"""The inference service, which runs models for devices that cannot answer themselves."""
