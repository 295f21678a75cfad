"""Tests of addresses: those from which data cannot leave this machine."""

import ipaddress
from urllib.parse import unquote


def stays_here(address: str) -> bool:
    """Return True if an address is a unix socket or on the loopback interface.

    Args:
        address: a target that gRPC dials or an address that it listens on, such as
            `127.0.0.1:50051`, `[::1]:50051`, `dns:///host:1` or `unix:path`.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rsplit("/", 1)[-1].rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_local_peer(peer: str) -> bool:
    """Return True if the other end of a connection is on this machine.

    Args:
        peer: as gRPC writes it, such as `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711` or `unix:`.
    """
    kind, _, address = peer.partition(":")
    return kind == "unix" or (kind in ("ipv4", "ipv6") and stays_here(unquote(address)))
