"""What one check has found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a check has ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not for long or not well."""
    FAILED = "failed"
    """A node does not work like this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found, for people and for programs."""

    check: str
    """What was looked at, such as `ingest tls`: stable, for programs."""
    level: Level
    message: str
    """One sentence."""
    action: str = ""
    """What to do about it. Empty: nothing."""


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, action: str) -> Finding:
    """Return a finding that will need action soon."""
    return Finding(check, Level.WARNING, message, action)


def failed(check: str, message: str, action: str) -> Finding:
    """Return a finding that needs action now."""
    return Finding(check, Level.FAILED, message, action)
