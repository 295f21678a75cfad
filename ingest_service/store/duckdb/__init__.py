"""The store in one DuckDB file. Nothing outside this folder imports DuckDB."""
