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
from tests.integration.inference.upload_callers import by, upload
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


def node_of(folder: Path, service: ServiceProcess, device: str = "gate-1") -> EdgeSettings:
    """Return the settings of a node of a service."""
    flags = ["--ingest-target", service.address, "--device-id", device]
    flags += ["--spool-dir", f"{folder}/{device}", "--tls-ca-file", f"{folder}/ca.pem"]
    return load(EdgeSettings, flags, prog="node")


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


def test_a_service_takes_a_new_certificate_without_a_restart_and_loses_nothing(
    tmp_path: Path,
) -> None:
    authority = Authority()
    first = issue(tmp_path, authority)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    with ingest(tmp_path, *tls(tmp_path)) as service, logger(node_of(tmp_path, service)) as node:
        node(prediction("before"), wait="committed", timeout=PATIENCE)
        assert shown(service) == der(first)
        second = issue(tmp_path, authority)
        assert shown(service) == der(second)
        node(prediction("on the open connection"), wait="committed", timeout=PATIENCE)
        with logger(node_of(tmp_path, service, "gate-2")) as another:
            another(prediction(), wait="committed", timeout=PATIENCE)
    assert "new connections get the certificate" in (tmp_path / "stderr.log").read_text()
    assert stored(tmp_path) == {"gate-1": (2, 2), "gate-2": (1, 1)}


def test_a_node_takes_new_authorities_with_a_restart_and_loses_nothing(tmp_path: Path) -> None:
    old, new = Authority("first"), Authority("second")
    issue(tmp_path, old)
    (tmp_path / "ca.pem").write_bytes(old.pem)
    with ingest(tmp_path, *tls(tmp_path)) as service:
        settings = node_of(tmp_path, service)
        node = logger(settings)
        node(prediction(), wait="committed", timeout=PATIENCE)
    issue(tmp_path, new)
    (tmp_path / "ca.pem").write_bytes(old.pem + new.pem)
    again = ["--listen", service.address]
    with ingest(tmp_path, *tls(tmp_path), *again):
        # The node trusts what it has read at its start.
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
        with logger(settings) as restarted:
            restarted(prediction("last"), wait="committed", timeout=PATIENCE)
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
