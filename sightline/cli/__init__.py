"""The `sightline` command: one front door to the three parts."""
