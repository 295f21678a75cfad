"""Who is calling, and what it may do: API keys, JWTs, and the certificates of mutual TLS."""
