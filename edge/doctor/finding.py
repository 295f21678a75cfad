"""The finding of one check, and its levels."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not well, or not for long."""
    FAILED = "failed"
    """A node does not work in this state."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check, for people and for programs."""

    check: str
    """Name of the check, such as `ingest tls`: stable, for programs."""
    level: Level
    message: str
    """One sentence."""
    action: str = ""
    """The remedy. Empty: none is needed."""


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, action: str) -> Finding:
    """Return a finding that will need action soon."""
    return Finding(check, Level.WARNING, message, action)


def failed(check: str, message: str, action: str) -> Finding:
    """Return a finding that needs action now."""
    return Finding(check, Level.FAILED, message, action)
