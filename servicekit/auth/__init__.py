"""Authentication and authorization of callers: API keys, JWTs, and mutual TLS."""
