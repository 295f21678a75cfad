"""The ingest service, which commits predictions to DuckDB exactly once."""
