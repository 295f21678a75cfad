"""gRPC credentials from PEM files that settings name.

gRPC reports an unusable file only as a port that cannot be bound, so each file is checked with
`ssl` first.
"""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc

from servicekit.server_settings import ServerSettings
from servicekit.settings import ClientTlsSettings, SettingsError

logger = logging.getLogger(__name__)
T = TypeVar("T")


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Return the credentials of a server; None: it serves without TLS.

    With `tls_client_ca_file` every client must show a certificate that one of those signed. Files
    that have changed are read again for new connections.

    Raises:
        SettingsError: a file cannot be read or used; the message names the setting.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    key_file, cert_file = settings.tls_key_file, settings.tls_cert_file
    client_ca = settings.tls_client_ca_file

    def read() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [_key_and_chain(key_file, cert_file)],
            root_certificates=_authorities("tls_client_ca_file", client_ca) if client_ca else None,
        )

    files = _WatchedFiles(key_file, cert_file, client_ca)
    return grpc.dynamic_ssl_server_credentials(
        read(),
        lambda: files.renewed(read),  # type: ignore[arg-type, return-value] # None: no change
        require_client_authentication=client_ca is not None,
    )


def https_context(key_file: Path, cert_file: Path) -> ssl.SSLContext:
    """Return the context of an HTTPS server. Files that have changed are read again, as above.

    Raises:
        SettingsError: a file cannot be read or used; the message names the setting.
    """
    files = _WatchedFiles(key_file, cert_file)
    first = newest = _server_context(key_file, cert_file)

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal newest
        if renewed := files.renewed(lambda: _server_context(key_file, cert_file)):
            newest = renewed
        connection.context = newest

    first.sni_callback = renew  # called at each handshake, whether it names a host or not
    return first


class _WatchedFiles:
    """Files that are looked at for each handshake, and read again when one of them has changed.

    Files that cannot be used, such as a new certificate whose key is not there yet, change nothing:
    the last ones stay in use.
    """

    def __init__(self, *files: Path | None) -> None:
        self._files = [file for file in files if file]
        self._seen = self._states()  # before they are read: what changes meanwhile is read again

    def renewed(self, read: Callable[[], T]) -> T | None:
        """Return what `read` returns if a file has changed since the last time; None: none has."""
        states = self._states()
        if states == self._seen:
            return None
        self._seen = states
        try:
            made = read()
        except (SettingsError, OSError) as error:
            logger.error("%s; the last certificate stays in use", error)  # noqa: TRY400
            return None
        logger.info("new connections get the certificate that is now in %s", self._files[1])
        return made

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [_state(file) for file in self._files]


def channel_credentials(settings: ClientTlsSettings) -> grpc.ChannelCredentials | None:
    """Return the credentials of a client; None: it connects without TLS.

    Raises:
        SettingsError: a file cannot be read or used; the message names the setting.
    """
    return client_credentials(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)


def client_credentials(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None, *, prefix: str = ""
) -> grpc.ChannelCredentials | None:
    """Return the credentials of a client; None: it connects without TLS.

    Args:
        ca_file: certificates that sign the server's; None: no TLS.
        cert_file: certificate chain of this client; with `key_file`: mutual TLS.
        key_file: private key of `cert_file`.
        prefix: what the settings' names have before `tls_ca_file`, such as `backend_`.

    Raises:
        SettingsError: a file cannot be read or used; the message names the setting.
    """
    if ca_file is None:
        return None
    key, chain = None, None
    if key_file and cert_file:
        key, chain = _key_and_chain(key_file, cert_file, prefix)
    return grpc.ssl_channel_credentials(
        root_certificates=_authorities(f"{prefix}tls_ca_file", ca_file),
        private_key=key,
        certificate_chain=chain,
    )


def _state(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced or written; None: it cannot be looked at."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def _key_and_chain(key_file: Path, cert_file: Path, prefix: str = "") -> tuple[bytes, bytes]:
    key = _read(f"{prefix}tls_key_file", key_file, "PRIVATE KEY")
    chain = _read(f"{prefix}tls_cert_file", cert_file, "CERTIFICATE")
    _server_context(key_file, cert_file, prefix)
    return key, chain


def _server_context(key_file: Path, cert_file: Path, prefix: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password, OpenSSL would prompt for that of an encrypted key on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        raise SettingsError(
            f"{prefix}tls_cert_file, {prefix}tls_key_file: {cert_file} must be a certificate, with"
            f" {key_file} its unencrypted key ({error.reason or error})"
        ) from error
    return context


def _authorities(setting: str, path: Path) -> bytes:
    pem = _read(setting, path, "CERTIFICATE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingsError(
            f"{setting}: {path} must contain certificates ({error.reason or error})"
        ) from error
    return pem


def _read(setting: str, path: Path, kind: str) -> bytes:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    if f"{kind}-----".encode() not in pem:
        raise SettingsError(f"{setting}: {path} must be a PEM file with a {kind}")
    return pem
