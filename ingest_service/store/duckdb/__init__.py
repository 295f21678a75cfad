"""The store in one DuckDB file. No module outside this package imports DuckDB."""
