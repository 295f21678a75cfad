"""Takes predictions into DuckDB, each exactly once."""
