"""The host names and origins that a browser may use.

A page on the internet can make its own name resolve to the console's address (DNS rebinding), and
can post forms to it (CSRF). The first is visible in the header `Host`, the second in `Origin`.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit


def is_allowed_host(host: str, names: Collection[str]) -> bool:
    """Return True if a browser may reach the console by this host.

    An IP address is always allowed: to rebind a name, a page needs a name.

    Args:
        host: the header `Host`, with or without a port.
        names: further names in lower case; `*.example` includes every name below `example`, `*`
            is every name.
    """
    name = _name(host)
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost") or _is_ip(name):
        return True
    return any(
        wanted in ("*", name) or (wanted.startswith("*.") and name.endswith(wanted[1:]))
        for wanted in names
    )


def is_allowed_origin(origin: str, host: str, origins: Collection[str]) -> bool:
    """Return True if a page of this origin may change something here.

    Args:
        origin: the header `Origin`; `null` for a page without one.
        host: the header `Host` of the same request.
        origins: further origins.
    """
    if origin in origins:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def _name(host: str) -> str | None:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name.rstrip(".") if name else None


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
