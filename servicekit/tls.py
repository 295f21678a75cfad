"""gRPC credentials from PEM files that settings name.

gRPC reports an unusable file only as a port that cannot be bound, so each file is checked with
`ssl` first.
"""

import logging
import ssl
from pathlib import Path

import grpc

from servicekit.server_settings import ServerSettings
from servicekit.settings import ClientTlsSettings, SettingsError

logger = logging.getLogger(__name__)


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Return the credentials of a server; None: it serves without TLS.

    With `tls_client_ca_file` every client must show a certificate that one of those signed. Files
    that have changed are read again for new connections.

    Raises:
        SettingsError: a file cannot be read or used; the message names the setting.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    files = _ServerFiles(settings.tls_key_file, settings.tls_cert_file, settings.tls_client_ca_file)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        files.renewed,  # type: ignore[arg-type] # None means no change; its types leave it out
        require_client_authentication=settings.tls_client_ca_file is not None,
    )


class _ServerFiles:
    """The files of a server's certificate, which are read again when one of them has changed.

    gRPC asks at each handshake, in a thread of its own. Files that cannot be used, such as a new
    certificate whose key is not there yet, change nothing: the last ones stay in use.
    """

    def __init__(self, key_file: Path, cert_file: Path, client_ca_file: Path | None) -> None:
        self._key_file = key_file
        self._cert_file = cert_file
        self._client_ca_file = client_ca_file
        self._seen: tuple[object, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Return what the files hold.

        Raises:
            SettingsError: a file cannot be read or used; the message names the setting.
        """
        self._seen = self._states()  # before the files: what changes meanwhile is read again
        client_ca = self._client_ca_file
        return grpc.ssl_server_certificate_configuration(
            [_key_and_chain(self._key_file, self._cert_file)],
            root_certificates=_authorities("tls_client_ca_file", client_ca) if client_ca else None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the files hold if it has changed since they were read; None: it has not."""
        if self._states() == self._seen:
            return None
        try:
            configuration = self.read()
        except (SettingsError, OSError) as error:
            logger.error("%s; the last certificate stays in use", error)  # noqa: TRY400
            return None
        logger.info("new connections get the certificate that is now in %s", self._cert_file)
        return configuration

    def _states(self) -> tuple[object, ...]:
        files = (self._key_file, self._cert_file, self._client_ca_file)
        return tuple(_state(file) for file in files if file)


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


def check_key_and_chain(key_file: Path, cert_file: Path) -> None:
    """Raise SettingsError if tls_key_file and tls_cert_file cannot serve TLS."""
    _key_and_chain(key_file, cert_file)


def _key_and_chain(key_file: Path, cert_file: Path, prefix: str = "") -> tuple[bytes, bytes]:
    key = _read(f"{prefix}tls_key_file", key_file, "PRIVATE KEY")
    chain = _read(f"{prefix}tls_cert_file", cert_file, "CERTIFICATE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password, OpenSSL would prompt for that of an encrypted key on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        raise SettingsError(
            f"{prefix}tls_cert_file, {prefix}tls_key_file: {cert_file} must be a certificate, with"
            f" {key_file} its unencrypted key ({error.reason or error})"
        ) from error
    return key, chain


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
