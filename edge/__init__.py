"""Sightline on the device: detect, decide, log, spool, ship; and ask the cloud."""
