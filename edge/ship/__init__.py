"""From the spool to the ingest service."""
