"""Tested examples of programs that use Sightline."""
