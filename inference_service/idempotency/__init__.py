"""A call with an idempotency key is answered once, however often and wherever it is retried."""
