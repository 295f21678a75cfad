"""Ways to other machines: which calls may go through a proxy of the environment, and through which.

gRPC and Python's HTTP client send calls through the proxy that the environment names, those to this
machine included. Whatever makes a channel takes its options from `channel_options`, and whatever
fetches over HTTP uses `fetch`.
"""

import ipaddress
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from servicekit.addresses import hosts_of, is_this_machine, public_address

DIRECT: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    # GRPC_ADDRESS_HTTP_PROXY, which the option above leaves in force.
    ("grpc.address_http_proxy_enabled_addresses", ""),
)
"""Options of a channel that uses no proxy."""
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_MAX_BYTES = 4 * 1024 * 1024
_environment_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that gRPC uses because a variable of the environment says so."""

    variable: str
    """Name of the variable, such as `https_proxy`."""
    host: str
    port: int
    """443 where the variable names none, as gRPC takes it."""
    user_info: str = field(default="", repr=False)
    """`user:password`, as in the variable; empty: none."""

    @property
    def address(self) -> str:
        """host:port, without user and password."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def channel_options(
    target: str, *, plain_secret: bool = False
) -> tuple[tuple[str, int | str], ...]:
    """Return the options that make a channel use no proxy, where it must not; empty: it may.

    Args:
        target: what the channel dials.
        plain_secret: the channel carries a credential and has no TLS, so that a proxy would see it.
    """
    return DIRECT if plain_secret or is_this_machine(target) else ()


def spare_proxies(url: str) -> None:
    """Make this process reach a URL's host without a proxy, where a proxy must not be used.

    That is a host on this machine, or a URL of `http` with a secret in it. The host is added to the
    variable `no_proxy` of this process, because FFmpeg has no other setting for one connection.

    Args:
        url: what FFmpeg opens; others than `http` and `https` never go through a proxy.
    """
    if not os.environ.get("http_proxy"):  # FFmpeg reads no other, for https as well
        return
    shown = public_address(url)
    scheme, _, rest = shown.partition("://")
    host = hosts_of(re.split("[/?]", rest, maxsplit=1)[0])[0]
    is_plain_secret = scheme.lower() == "http" and shown != url
    if scheme.lower() not in ("http", "https") or not (
        is_plain_secret or is_this_machine(f"[{host}]:0")
    ):
        return
    with _environment_lock:
        spared = os.environ.get("no_proxy", "")
        if host not in spared.split(","):
            os.environ["no_proxy"] = f"{spared},{host}".lstrip(",")


def proxy_of(target: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy through which gRPC reaches a target; None: it dials the target.

    Args:
        target: host:port or another target of gRPC.
        environment: variables by name. gRPC reads them in lower case only.
    """
    if is_this_machine(target):
        return None
    variable = next((name for name in _VARIABLES if name in environment), "")
    try:
        url = urlsplit(environment.get(variable, ""))
        host, port = url.hostname, url.port
    except ValueError:
        return None
    exceptions = next((environment[name] for name in _EXCEPTIONS if name in environment), "")
    if url.scheme != "http" or not host or _is_excepted(hosts_of(target)[0], exceptions):
        return None
    user_info, _, _ = url.netloc.rpartition("@")
    return Proxy(variable, host, port or 443, user_info)


def fetch(url: str, timeout: float) -> bytes:
    """Return what a URL serves. Redirects are not followed, nor a proxy used for this machine.

    A proxy of the environment is used for `https` only: it would see and could change the rest.

    Args:
        url: http or https.
        timeout: seconds to wait for each step.

    Raises:
        OSError: there is no connection, or the answer is no success.
        http.client.HTTPException: the answer is not HTTP.
        ValueError: the answer has more than 4 MiB.
    """
    parts = urlsplit(url)
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if parts.scheme != "https" or is_this_machine(f"[{parts.hostname}]:0"):
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as answer:
            content: bytes = answer.read(_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    if len(content) > _MAX_BYTES:
        raise ValueError(f"the answer must be at most {_MAX_BYTES} bytes")
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Return no request: the redirect becomes an HTTPError."""
        del req, fp, code, msg, headers, newurl


def _is_excepted(host: str, exceptions: str) -> bool:
    """Return True if a list has a host, its domain or its network, as gRPC reads it."""
    for entry in exceptions.lower().split(","):
        name = entry.strip().lstrip(".")
        if name and (host == name or host.endswith(f".{name}") or _is_in(host, name)):
            return True
    return False


def _is_in(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
