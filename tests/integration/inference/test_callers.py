"""Callers that mutual TLS has verified, each with its own limit and its own keys."""

import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.integration.auth.authority import Authority
from tests.integration.inference.process import Server, ask, client, started
from tests.unit.inference_service.tiny_onnx import picture

RED = picture()


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
