"""Tests of addresses, and the part of an address that is safe to show.

Whatever prints, logs or stores an address passes it through `public_address`, or a text of another
library through `without_secrets`.
"""

import ipaddress
import re
import socket
from pathlib import Path
from urllib.parse import unquote

_STREAM_KEYS = {"channel", "ch", "subtype", "camera", "stream", "id", "profile"}
"""Keys of a URL's query that distinguish the streams of one recorder and hold no secret."""
_SECRET = re.compile(
    r"(user\w*|usr|login\w*|pass\w*?|pwd?|psw|token|key|auth|credentials?|secret|sig\w*)"
    r"=[^_&/;?]*",
    re.IGNORECASE,
)
"""Secret in a path, as cameras have it: `/user=admin_password=x_channel=1.sdp`."""
_REWRITTEN = re.compile(
    r"(https?|ftp|mms\w?|rtmp\w{0,2}|rtp|rtsps?|srt|tcp|tls|udp)_(?:__|//)", re.IGNORECASE
)
"""Start of a URL whose `:` and `/` ultralytics has replaced by `_`, or only the `:`."""
_USER = re.compile(r"(?:\w+:/)?[^/\\?#\s]*:(?![/\\]).*@")
"""User and password before a host without a scheme, or after one with a single slash."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOSTS_FILE = Path("/etc/hosts")


def stays_here(address: str) -> bool:
    """Return True if an address is a unix socket or on the loopback interface.

    Args:
        address: a target that gRPC dials or an address that it listens on, such as
            `127.0.0.1:50051`, `[::1]:50051`, `dns:///host:1` or `unix:path`.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    return all(host == "localhost" or _is_loopback(host) for host in hosts_of(address))


def is_this_machine(address: str) -> bool:
    """Return True if an address is on this machine, by any of its names and addresses.

    Names are compared with this machine's own and those in its hosts file; no name server is asked.

    Args:
        address: as for `stays_here`.
    """
    return stays_here(address) or all(map(_is_own, hosts_of(address)))


def is_local_peer(peer: str) -> bool:
    """Return True if the other end of a connection is on this machine.

    Args:
        peer: as gRPC writes it, such as `ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711` or `unix:`.
    """
    kind, _, address = peer.partition(":")
    return kind == "unix" or (kind in ("ipv4", "ipv6") and stays_here(unquote(address)))


def hosts_of(address: str) -> list[str]:
    """Return the hosts of a gRPC target in lower case: one, or those of a list of addresses."""
    kind, _, rest = address.partition(":")
    if kind in ("ipv4", "ipv6"):
        return [_host(part) for part in rest.split(",")]
    return [_host(address.removeprefix("dns:").rsplit("/", 1)[-1])]


def public_address(address: str) -> str:
    """Return an address without what may be secret: a user, a password, a token, a fragment.

    Of a query only the keys that identify a stream are kept. The address is not parsed as a URL:
    passwords of cameras hold characters that URLs forbid. Of a URL in which ultralytics has
    replaced `:` and `/` only the scheme is kept, because the end of a password is lost in it.

    Args:
        address: a URL, a gRPC target, a path or a number; those without a secret are returned as
            they are.

    Example:
        >>> from servicekit.addresses import public_address
        >>> public_address("rtsp://admin:pw@10.0.0.7/live?channel=2&token=t")
        'rtsp://10.0.0.7/live?channel=2'
        >>> public_address("rtsp___admin_pw_10.0.0.7_live")
        'rtsp stream'
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        rewritten = _REWRITTEN.match(address)
        if rewritten:
            return f"{rewritten[1]} stream"
        return _USER.sub("", address, count=1)
    path, _, query = rest.rpartition("@")[2].partition("#")[0].partition("?")
    items = re.split("[&;?]", query)  # cameras separate them by any of these
    kept = [item for item in items if item.partition("=")[0].lower() in _STREAM_KEYS]
    return f"{scheme}://" + _SECRET.sub(r"\1=***", path + ("?" + "&".join(kept) if kept else ""))


def url_scheme(path: str) -> str:
    """Return the scheme of a URL, also of one that ultralytics has rewritten; empty: it is none."""
    url = _SCHEME.match(path) or _REWRITTEN.match(path)
    return url[1] if url else ""


def without_secrets(text: str, *addresses: str) -> str:
    """Return a text of another library in which each URL is as `public_address` returns it.

    Args:
        text: an error message or a log line.
        addresses: addresses that it may repeat, even with spaces or quotes in them.
    """
    for address in addresses:
        text = text.replace(address, public_address(address))
    return _URL.sub(lambda url: public_address(url[0]), text)


def _host(part: str) -> str:
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::\d*)?", part)
    if bracketed:
        return bracketed[1].lower()
    return (part.rpartition(":")[0] if part.count(":") == 1 else part).lower()


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_own(host: str) -> bool:
    """Return True if a host is a name or an address of this machine."""
    name = host.rstrip(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name in _own_names()
    return _is_own_address(host)


def _is_own_address(address: str) -> bool:
    """Return True if a socket can be bound to an address, which only this machine's own allow."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _own_names() -> set[str]:
    """Return the names of this machine: its host name, and names of its addresses."""
    host_name = socket.gethostname().lower()
    names = {host_name, host_name.partition(".")[0]}
    try:
        lines = _HOSTS_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return names
    for line in lines:
        address, *words = line.partition("#")[0].split() or [""]
        if address and _is_own_address(address):
            names.update(word.lower() for word in words)
    return names
