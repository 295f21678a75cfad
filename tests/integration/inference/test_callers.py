"""Callers that mutual TLS has verified, each with its own limit and its own keys."""

import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from sightline.inference.v1 import inference_service_pb2
from sightline.openinference.v2 import open_inference_pb2, open_inference_pb2_grpc

from tests.integration.auth.authority import Authority
from tests.integration.inference.process import InferenceProcess, ask, client, failure, started
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

    def replayed(
        server: InferenceProcess, credentials: grpc.ChannelCredentials
    ) -> Callable[[], bool]:
        def call() -> bool:
            with client(server, credentials) as caller:
                _, done = caller.stub.Infer.with_call(ask(RED), timeout=30, metadata=key)
                return ("idempotent-replayed", "true") in (done.trailing_metadata() or ())

        return call

    with started(tmp_path, *flags) as server:
        for name in ("gate-1", "gate-2"):
            certificate, private = authority.issue(name)
            trust = grpc.ssl_channel_credentials(authority.pem, private, certificate)
            call = replayed(server, trust)
            assert call() is False  # under the same key as the other gate's
            assert call() is True
            with client(server, trust) as caller:
                error = caller.refusal(RED)
                assert error.reason == "RATE_LIMITED"
                assert error.quotas[0].subject == f"caller:{name}"


def test_without_a_certificate_nobody_gets_in(
    tmp_path: Path, authority: Authority, flags: list[str]
) -> None:
    trust = grpc.ssl_channel_credentials(authority.pem)
    with started(tmp_path, *flags) as server, client(server, trust) as caller:
        assert caller.refusal(RED).code is grpc.StatusCode.UNAVAILABLE


def test_each_method_has_a_limit_of_its_own(tmp_path: Path, colours: Path) -> None:
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--rate-limits", "Infer=0.01/s:2,UploadImage=0.01/s"),
    ]
    upload = [inference_service_pb2.UploadImageRequest(chunk=b"x")] * 3
    with started(tmp_path, *flags) as server, client(server) as caller:
        for _ in range(2):
            caller.infer(RED)
        error = caller.refusal(RED)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert error.quotas[0].subject == "caller:anonymous"
        assert error.quotas[0].description == "0.01 calls of Infer per second, 2 at once"
        assert error.retry_after == pytest.approx(100, abs=5)
        stub, health = caller.stub, open_inference_pb2_grpc.GRPCInferenceServiceStub(caller.channel)
        # The messages of an upload are one call.
        sent = failure(lambda: stub.UploadImage(iter(upload), timeout=10))
        assert sent.reason == "UPLOAD_HEADER_MISSING"
        sent = failure(lambda: stub.UploadImage(iter(upload), timeout=10))
        assert sent.reason == "RATE_LIMITED"
        for _ in range(20):
            assert caller.health() == "SERVING"
            assert health.ServerLive(open_inference_pb2.ServerLiveRequest(), timeout=10).live
            stub.ListModels(inference_service_pb2.ListModelsRequest(), timeout=10)


def test_a_method_that_cannot_be_limited_is_refused(tmp_path: Path) -> None:
    for method in ("Infre", "ServerLive"):
        server = InferenceProcess(tmp_path, "--rate-limits", f"{method}=1/s")
        try:
            assert server.process.wait(60) == 2
        finally:
            server.stop(signal.SIGKILL)
        line = server.log.read_text().splitlines()[-1]
        assert "rate_limits: must name methods out of Infer, ListModels, " in line
        assert f"(got '{method}')" in line
