"""Callers that mutual TLS has verified, each with its own limit and its own keys."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.inference.process import Server, ask, client, started
from tests.unit.inference_service.tiny_onnx import picture

RED = picture()
Pair = tuple[bytes, bytes]  # certificate and private key, PEM


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """Signs certificates for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._sign("ca", self._key.public_key(), authority=True)

    def issue(self, common_name: str) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self._sign(common_name, key.public_key(), authority=False), private

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("ca"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if name == "server":
            names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def flags(tmp_path: Path, colours: Path, authority: Authority) -> list[str]:
    certificate, key = authority.issue("server")
    for name, pem in (("ca", authority.pem), ("cert", certificate), ("key", key)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    return [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--tls-cert-file", str(tmp_path / "cert.pem")),
        *("--tls-key-file", str(tmp_path / "key.pem")),
        *("--tls-client-ca-file", str(tmp_path / "ca.pem")),
        *("--rate-limit-per-second", "0.01", "--rate-limit-burst", "2"),
    ]


def test_each_caller_has_its_own_limit_and_its_own_keys(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    key = (("idempotency-key", str(uuid.uuid4())),)

    def replayed(server: Server, credentials: grpc.ChannelCredentials) -> Callable[[], bool]:
        def call() -> bool:
            with client(server, credentials) as made:
                _, done = made.stub.Infer.with_call(ask(RED), timeout=30, metadata=key)
                return ("idempotent-replayed", "true") in (done.trailing_metadata() or ())

        return call

    with started(tmp_path, *flags) as server:
        for name in ("gate-1", "gate-2"):
            certificate, private = authority.issue(name)
            trust = grpc.ssl_channel_credentials(authority.pem, private, certificate)
            call = replayed(server, trust)
            assert call() is False  # under the same key as the other gate's
            assert call() is True
            with client(server, trust) as made:
                error = made.refusal(RED)
                assert error.reason == "RATE_LIMITED"
                assert error.quotas[0].subject == f"caller:{name}"


def test_without_a_certificate_nobody_gets_in(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    trust = grpc.ssl_channel_credentials(authority.pem)
    with started(tmp_path, *flags) as server, client(server, trust) as made:
        assert made.refusal(RED).code is grpc.StatusCode.UNAVAILABLE
