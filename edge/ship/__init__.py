"""Shipping of a spool to the ingest service."""
