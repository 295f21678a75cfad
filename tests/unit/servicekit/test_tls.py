import contextlib
import datetime
import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from servicekit.server_settings import ServerSettings
from servicekit.settings import ClientTlsSettings, SettingsError
from servicekit.tls import channel_credentials, server_credentials
from tests.unit.servicekit.echo import Context, Echo, call


class Server(ServerSettings):
    part: ClassVar[str] = "ingest"


class Client(ClientTlsSettings):
    part: ClassVar[str] = "edge"


@dataclass(frozen=True)
class Issued:
    """A certificate and its key in files."""

    cert_file: Path
    key_file: Path
    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def issue(folder: Path, name: str, issuer: Issued | None = None) -> Issued:
    """Return a certificate for 127.0.0.1; without an issuer, a self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    cert = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Issued(*files, cert, key)


@pytest.fixture
def authority(tmp_path: Path) -> Issued:
    return issue(tmp_path, "authority")


@pytest.fixture
def server(tmp_path: Path, authority: Issued) -> Issued:
    return issue(tmp_path, "server", authority)


@contextlib.asynccontextmanager
async def secure(settings: ServerSettings) -> AsyncIterator[str]:
    async def nothing(_context: Context) -> None:
        """Echo the request."""

    credentials = server_credentials(settings)
    assert credentials is not None
    grpc_server = grpc.aio.server()
    Echo(nothing).register(grpc_server)
    port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
    await grpc_server.start()
    yield f"127.0.0.1:{port}"
    await grpc_server.stop(None)


async def echoed(address: str, settings: ClientTlsSettings) -> list[bytes]:
    credentials = channel_credentials(settings)
    assert credentials is not None
    async with grpc.aio.secure_channel(address, credentials) as channel:
        return await call(channel, "UnaryUnary", timeout=5)


async def refused(address: str, settings: ClientTlsSettings) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await echoed(address, settings)
    return caught.value.code()


async def test_tls_serves_those_who_trust_it(
    tmp_path: Path, authority: Issued, server: Issued
) -> None:
    async with secure(
        Server(tls_cert_file=server.cert_file, tls_key_file=server.key_file)
    ) as address:
        assert await echoed(address, Client(tls_ca_file=authority.cert_file)) == [b"a"]
        stranger = issue(tmp_path, "stranger")
        assert await refused(address, Client(tls_ca_file=stranger.cert_file)) is (
            grpc.StatusCode.UNAVAILABLE
        )
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, "UnaryUnary", timeout=5)


async def test_mutual_tls_refuses_clients_without_the_right_certificate(
    tmp_path: Path, authority: Issued, server: Issued
) -> None:
    settings = Server(
        tls_cert_file=server.cert_file,
        tls_key_file=server.key_file,
        tls_client_ca_file=authority.cert_file,
    )
    camera = issue(tmp_path, "camera", authority)
    impostor = issue(tmp_path, "impostor", issue(tmp_path, "other-authority"))
    ca = authority.cert_file
    async with secure(settings) as address:
        known = Client(tls_ca_file=ca, tls_cert_file=camera.cert_file, tls_key_file=camera.key_file)
        assert await echoed(address, known) == [b"a"]
        assert await refused(address, Client(tls_ca_file=ca)) is grpc.StatusCode.UNAVAILABLE
        unknown = Client(
            tls_ca_file=ca, tls_cert_file=impostor.cert_file, tls_key_file=impostor.key_file
        )
        assert await refused(address, unknown) is grpc.StatusCode.UNAVAILABLE


def take_place(new: Issued, old: Issued, *, key: bool = True, cert: bool = True) -> None:
    """Replace the files of a certificate by those of another, each in one step."""
    if cert:
        new.cert_file.replace(old.cert_file)
    if key:
        new.key_file.replace(old.key_file)


async def test_a_new_certificate_is_used_for_new_connections(
    tmp_path: Path, authority: Issued, server: Issued, caplog: pytest.LogCaptureFixture
) -> None:
    other = issue(tmp_path, "other-authority")
    by_old, by_new = Client(tls_ca_file=authority.cert_file), Client(tls_ca_file=other.cert_file)
    settings = Server(tls_cert_file=server.cert_file, tls_key_file=server.key_file)
    async with secure(settings) as address:
        credentials = channel_credentials(by_old)
        assert credentials is not None
        async with grpc.aio.secure_channel(address, credentials) as open_channel:
            assert await call(open_channel, "UnaryUnary", timeout=5) == [b"a"]
            renewed = issue(tmp_path, "renewed", other)
            take_place(renewed, server, key=False)  # half of it
            for _ in range(2):
                assert await echoed(address, by_old) == [b"a"]
            assert caplog.text.count("the last certificate stays in use") == 1
            take_place(renewed, server, cert=False)
            assert await echoed(address, by_new) == [b"a"]
            assert await refused(address, by_old) is grpc.StatusCode.UNAVAILABLE
            assert await call(open_channel, "UnaryUnary", timeout=5) == [b"a"]
        server.cert_file.unlink()
        assert await echoed(address, by_new) == [b"a"]
    assert caplog.text.count("the last certificate stays in use") == 2


async def test_new_authorities_of_clients_are_used_for_new_connections(
    tmp_path: Path, authority: Issued, server: Issued
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.cert_file.read_bytes())
    settings = Server(
        tls_cert_file=server.cert_file, tls_key_file=server.key_file, tls_client_ca_file=trusted
    )
    other = issue(tmp_path, "other-authority")
    camera = issue(tmp_path, "camera", other)
    client = Client(
        tls_ca_file=authority.cert_file,
        tls_cert_file=camera.cert_file,
        tls_key_file=camera.key_file,
    )
    async with secure(settings) as address:
        assert await refused(address, client) is grpc.StatusCode.UNAVAILABLE
        trusted.write_bytes(authority.cert_file.read_bytes() + other.cert_file.read_bytes())
        assert await echoed(address, client) == [b"a"]
        trusted.write_bytes(authority.cert_file.read_bytes())
        assert await refused(address, client) is grpc.StatusCode.UNAVAILABLE


def test_no_files_mean_no_tls() -> None:
    assert server_credentials(Server()) is None
    assert channel_credentials(Client()) is None


def test_files_that_do_not_fit_or_hold_rubbish_are_refused(
    tmp_path: Path, authority: Issued, server: Issued
) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        server.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    cert, key = server.cert_file, server.key_file
    for cert_file, key_file in ((cert, authority.key_file), (rubbish, key), (cert, locked)):
        with pytest.raises(
            SettingsError, match=r"^tls_cert_file, tls_key_file: .* its unencrypted"
        ):
            server_credentials(Server(tls_cert_file=cert_file, tls_key_file=key_file))
    with pytest.raises(SettingsError, match=r"^tls_client_ca_file: .* must contain certificates"):
        server_credentials(Server(tls_cert_file=cert, tls_key_file=key, tls_client_ca_file=rubbish))
    with pytest.raises(SettingsError, match=r"^tls_ca_file: .* must contain certificates"):
        channel_credentials(Client(tls_ca_file=rubbish))


def test_a_file_that_cannot_be_used_names_its_setting(tmp_path: Path, server: Issued) -> None:
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.touch()
    cert, key = server.cert_file, server.key_file
    for given, complaint in (
        (Server(tls_cert_file=missing, tls_key_file=key), "tls_cert_file: .* No such file"),
        (Server(tls_cert_file=cert, tls_key_file=missing), "tls_key_file: .* No such file"),
        (Server(tls_cert_file=empty, tls_key_file=key), "tls_cert_file: .* with a CERTIFICATE"),
        (Server(tls_cert_file=cert, tls_key_file=cert), "tls_key_file: .* with a PRIVATE KEY"),
        (
            Server(tls_cert_file=cert, tls_key_file=key, tls_client_ca_file=missing),
            "tls_client_ca_file: .* No such file",
        ),
    ):
        with pytest.raises(SettingsError, match=complaint):
            server_credentials(given)
    with pytest.raises(SettingsError, match=r"tls_ca_file: .* No such file"):
        channel_credentials(Client(tls_ca_file=missing))
