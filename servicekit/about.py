"""The program's name, and what a health check says of the server."""

import os
from datetime import UTC, datetime

from servicekit.distribution import version

TIME_KEY = "sightline-time"
"""Trailing metadata: the server's wall clock, ISO 8601, UTC."""
VERSION_KEY = "sightline-version"
"""Trailing metadata: the version of Sightline."""
PROGRAM_VARIABLE = "_SIGHTLINE_PROGRAM"
"""Environment variable by which `sightline serve ...` passes on the name that was typed."""


def program(default: str) -> str:
    """Return the name of this program as it was typed, for `--help` and errors.

    Args:
        default: the name where no other program started this one, such as `python -m edge`.
    """
    return os.environ.pop(PROGRAM_VARIABLE, default)


def of_this_server() -> list[tuple[str, str]]:
    """Return the trailing metadata of a health check."""
    return [(TIME_KEY, datetime.now(UTC).isoformat()), (VERSION_KEY, version())]
