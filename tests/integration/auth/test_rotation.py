"""Certificates and secrets that are replaced: when a new one takes effect, and what it costs.

docs/how-to/secure.md says so; API keys and tokens are tried in `test_api_keys.py`,
`test_tokens.py` and `test_docs.py`.
"""

import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from sightline.inference.v1 import inference_pb2
from sightline.inference.v1 import inference_service_pb2 as messages
from sightline.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from edge.endpoints import ingest_endpoint
from edge.settings import EdgeSettings
from servicekit.errors import from_rpc_error
from servicekit.settings import load
from sightline import LogOptions, PredictionLogger
from sightline.cli.processes import ServiceProcess
from tests.integration.auth.authority import Authority
from tests.integration.auth.services import PATIENCE, RED, ingest, serving, stored
from tests.integration.inference.test_uploads import by, upload
from tests.unit.edge.samples import eventually, prediction

COUNT = 20


def issue(folder: Path, authority: Authority) -> bytes:
    """Write a new certificate of the server and its key, and return the certificate."""
    certificate, key = authority.issue("server")
    (folder / "server.pem").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)
    return certificate


def tls(folder: Path) -> list[str]:
    files = ("--tls-cert-file", str(folder / "server.pem"))
    return [*files, "--tls-key-file", str(folder / "server.key")]


def shown(service: ServiceProcess) -> bytes:
    """Return the certificate that a new connection is shown."""
    host, _, port = service.address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=PATIENCE)
    return ssl.PEM_cert_to_DER_cert(pem)


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def logger(settings: EdgeSettings) -> PredictionLogger:
    """Return the logger of a node that starts with these settings."""
    endpoint = ingest_endpoint(settings)
    return PredictionLogger(
        endpoint.target,
        device_id=settings.device_id,
        spool_dir=settings.spool_dir,
        credentials=endpoint.credentials,
        options=LogOptions(batch_timeout_seconds=0.02),
    )


def test_certificates_take_effect_with_a_restart_and_lose_nothing(tmp_path: Path) -> None:
    old, new = Authority("first"), Authority("second")
    first = issue(tmp_path, old)
    (tmp_path / "ca.pem").write_bytes(old.pem)
    with ingest(tmp_path, *tls(tmp_path)) as service:
        flags = ["--ingest-target", service.address, "--device-id", "gate-1"]
        flags += ["--spool-dir", f"{tmp_path}/spool", "--tls-ca-file", f"{tmp_path}/ca.pem"]
        settings = load(EdgeSettings, flags, prog="node")
        node = logger(settings)
        node(prediction(), wait="committed", timeout=PATIENCE)
        second = issue(tmp_path, new)
        assert shown(service) == der(first), "a running service would have read the new files"
    again = ["--listen", service.address]
    with ingest(tmp_path, *tls(tmp_path), *again) as service:
        assert shown(service) == der(second)
        # The node trusts what it has read at its start.
        (tmp_path / "ca.pem").write_bytes(old.pem + new.pem)
        for number in range(COUNT):
            node(prediction(f"i{number}"))
        assert node.flush(PATIENCE, until="spooled")
        assert eventually(lambda: node.stats().last_error is not None)
        assert node.close(PATIENCE)
        assert node.stats().backlog == COUNT
        with logger(settings) as restarted:
            assert restarted.flush(PATIENCE, until="committed")
    # A file with both authorities is good for a service with a certificate of either.
    issue(tmp_path, old)
    with ingest(tmp_path, *tls(tmp_path), *again), logger(settings) as node:
        node(prediction("last"), wait="committed", timeout=PATIENCE)
    assert stored(tmp_path) == {"gate-1": (COUNT + 2, COUNT + 2)}


def by_secret(folder: Path, secret: str) -> list[str]:
    return ["--upload-secret", secret * 40]


def by_file(folder: Path, _: str) -> list[str]:
    (folder / "uploads/reference.key").unlink(missing_ok=True)
    return []


@pytest.mark.parametrize("replaced", [by_secret, by_file])
def test_a_reference_ends_with_the_secret_that_signed_it(
    tmp_path: Path, colours: Path, replaced: Callable[[Path, str], list[str]]
) -> None:
    flags = ["--model-repository", str(colours), "--upload-dir", str(tmp_path / "uploads")]
    with serving("inference_service", tmp_path, *flags, *replaced(tmp_path, "a")) as service:
        reference = uploaded(service)
        assert answer(service, reference) == ""
    with serving("inference_service", tmp_path, *flags, *replaced(tmp_path, "b")) as service:
        assert answer(service, reference) == "REFERENCE_UNKNOWN"
        assert answer(service, uploaded(service)) == ""


def uploaded(service: ServiceProcess) -> inference_pb2.ImageReference:
    """Return a reference to a picture."""
    with grpc.insecure_channel(service.address) as channel:
        return InferenceServiceStub(channel).UploadImage(upload(RED), timeout=PATIENCE).image


def answer(service: ServiceProcess, reference: inference_pb2.ImageReference) -> str:
    """Return the reason why a picture is not answered; empty: it is."""
    request = messages.InferRequest(images=[by(reference)])
    with grpc.insecure_channel(service.address) as channel:
        try:
            (result,) = InferenceServiceStub(channel).Infer(request, timeout=PATIENCE).results
        except grpc.RpcError as error:
            return from_rpc_error(error).reason
    return str(result.error.reason)
