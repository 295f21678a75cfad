"""The `sightline` command line, which leads to the three parts."""
