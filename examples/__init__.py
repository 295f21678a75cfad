"""Tested examples of Sightline's use."""
