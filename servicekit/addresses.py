"""Whether what is sent to an address can leave this machine."""

import ipaddress


def stays_here(address: str) -> bool:
    """Returns whether an address is a unix socket or on the loopback interface.

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
