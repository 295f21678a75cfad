"""Sightline's contract: messages and gRPC stubs generated from `proto/` by `make generate`."""
