"""What a server says of itself with every health check, for whoever looks for a fault."""

from datetime import UTC, datetime
from functools import cache
from importlib import metadata

TIME_KEY = "sightline-time"
"""Trailing metadata: the server's wall clock, ISO 8601, UTC."""
VERSION_KEY = "sightline-version"
"""Trailing metadata: the version of Sightline."""


@cache
def version() -> str:
    """Return the version of the installed package; `unknown`: it is not installed."""
    try:
        return metadata.version("sightline")
    except metadata.PackageNotFoundError:
        return "unknown"


def of_this_server() -> list[tuple[str, str]]:
    """Return the trailing metadata of a health check."""
    return [(TIME_KEY, datetime.now(UTC).isoformat()), (VERSION_KEY, version())]
