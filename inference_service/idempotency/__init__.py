"""Idempotency keys: a call with a key is executed once, also if it is retried on another server."""
