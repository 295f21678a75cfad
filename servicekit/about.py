"""What a server says of itself with every health check, for whoever looks for a fault."""

from datetime import UTC, datetime

from servicekit.distribution import version

TIME_KEY = "sightline-time"
"""Trailing metadata: the server's wall clock, ISO 8601, UTC."""
VERSION_KEY = "sightline-version"
"""Trailing metadata: the version of Sightline."""


def of_this_server() -> list[tuple[str, str]]:
    """Return the trailing metadata of a health check."""
    return [(TIME_KEY, datetime.now(UTC).isoformat()), (VERSION_KEY, version())]
