"""Answers for devices that cannot."""
