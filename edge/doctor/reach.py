"""Causes of an unreachable service: names, ports, TLS, proxies.

gRPC reports UNAVAILABLE for all of them. A service is dialled the way that gRPC dials it: through
the proxy of the environment, if there is one for it.
"""

import base64
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import unquote_to_bytes

from servicekit.routes import Proxy, proxy_of
from servicekit.settings import ClientTlsSettings

_SOON_DAYS = 14


@dataclass(frozen=True, slots=True)
class ConnectionFault:
    """The cause of a failed connection, and the remedy."""

    message: str
    action: str


def unreachable(target: str, timeout: float) -> ConnectionFault | None:
    """Return the reason why no connection to a target is possible; None: one is.

    Args:
        target: host:port or unix:path.
        timeout: seconds.
    """
    if proxy := proxy_of(target):
        return _unreachable_through(proxy, target, timeout)
    try:
        _connect(target, timeout).close()
    except socket.gaierror as error:
        return ConnectionFault(
            f"the host of {target} is not known: {error.strerror}",
            "Check the name and this machine's DNS, or give an IP address.",
        )
    except TimeoutError:
        return ConnectionFault(
            f"{target} does not answer within {timeout:g} s",
            "Check the address, and firewalls and routes on the way.",
        )
    except (ConnectionRefusedError, FileNotFoundError):
        return ConnectionFault(
            f"nothing listens at {target}", "Start the service there, or correct the address."
        )
    except OSError as error:
        return ConnectionFault(
            f"{target} cannot be reached: {error.strerror or error}",
            "Check the address and this machine's network.",
        )
    return None


def shake_hands(target: str, settings: ClientTlsSettings, timeout: float) -> datetime | None:
    """Make a TLS connection with these settings, and wait for the server's first bytes.

    Returns:
        The end of the server's certificate; None: not known.

    Raises:
        ssl.SSLError: one side refuses the other.
        OSError: there is no connection, or the server hangs up.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(settings.tls_ca_file)
    if settings.tls_cert_file:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file, password="")
    context.set_alpn_protocols(["h2"])
    host = None if target.startswith("unix:") else _host_and_port(target)[0]
    context.check_hostname = host is not None
    with (
        _connect(target, timeout) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        # In TLS 1.3 a server refuses the client only after the handshake; one that does not,
        # begins with its HTTP/2 settings.
        if not secure.recv(1):
            raise ConnectionResetError("the server hung up after the handshake")
        return _end_of(secure.getpeercert() or {})


def speaks_tls(target: str, timeout: float) -> bool:
    """Return True if a server answers a TLS handshake, whoever signed its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with _connect(target, timeout) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def refused(error: OSError, settings: ClientTlsSettings) -> ConnectionFault:
    """Return the cause of a failed handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _mistrusted(error, settings)
    show = "Give tls_cert_file and tls_key_file, signed by the server's --tls-client-ca-file."
    if not isinstance(error, ssl.SSLError):
        demanded = (
            "another certificate" if settings.tls_cert_file else "a certificate of its clients"
        )
        return ConnectionFault(
            f"the server hangs up in the handshake: it may demand {demanded}", show
        )
    reason = error.reason or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return ConnectionFault(
            "the server does not speak TLS",
            "Give it --tls-cert-file and --tls-key-file, or do not set tls_ca_file here.",
        )
    if "ALERT" in reason:
        alert = reason.split("ALERT_", 1)[-1].replace("_", " ").lower()
        return ConnectionFault(f"the server refuses this device's certificate: {alert}", show)
    return ConnectionFault(
        f"the TLS handshake failed: {reason}", "Compare the TLS settings of both."
    )


def ends_soon(end: datetime, now: datetime) -> bool:
    """Return True if a certificate with this end should be renewed now."""
    return (end - now).days < _SOON_DAYS


def _mistrusted(
    error: ssl.SSLCertVerificationError, settings: ClientTlsSettings
) -> ConnectionFault:
    reason = error.verify_message
    if "expired" in reason or "not yet valid" in reason:
        action = "Renew the server's certificate; if it is good, set this machine's clock."
    elif "mismatch" in reason:
        action = "Dial a name that is in the certificate, or make one for this name or address."
    else:
        action = f"Put the certificate that signed the server's into {settings.tls_ca_file}."
    return ConnectionFault(f"the server's certificate is not trusted: {reason}", action)


def _unreachable_through(proxy: Proxy, target: str, timeout: float) -> ConnectionFault | None:
    try:
        _connect(target, timeout).close()
    except OSError as error:
        return ConnectionFault(
            f"{target} cannot be reached through the proxy {proxy.address}, which the variable"
            f" {proxy.variable} names: {error.strerror or error}",
            f"Correct {proxy.variable}, or add the host to no_grpc_proxy to dial it directly.",
        )
    return None


def _connect(target: str, timeout: float) -> socket.socket:
    if target.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(target.removeprefix("unix:").removeprefix("//"))
        except OSError:
            connection.close()
            raise
        return connection
    if proxy := proxy_of(target):
        return _tunnel(proxy, target, timeout)
    return socket.create_connection(_host_and_port(target), timeout)


def _tunnel(proxy: Proxy, target: str, timeout: float) -> socket.socket:
    """Return a connection that a proxy makes (RFC 9110, section 9.3.6)."""
    headers = {}
    if proxy.user_info:
        credential = base64.b64encode(unquote_to_bytes(proxy.user_info)).decode()
        headers["Proxy-Authorization"] = f"Basic {credential}"
    connection = HTTPConnection(proxy.host, proxy.port, timeout=timeout)
    host, _, port = target.rpartition(":")
    connection.set_tunnel(host, int(port), headers)
    try:
        connection.connect()
    except HTTPException as error:
        connection.close()
        raise ConnectionError("the proxy does not answer as HTTP") from error
    made, connection.sock = connection.sock, None
    if made is None:
        raise ConnectionError("the proxy makes no connection")
    return made


def _host_and_port(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)


def _end_of(certificate: Mapping[str, Any]) -> datetime | None:
    end = certificate.get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(end), UTC) if end else None
