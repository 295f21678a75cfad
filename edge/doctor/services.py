"""Checks of the two services: reachable, trusted, ready, let in, in step."""

import ssl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, ingest_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.client import InferenceClient
from edge.cloud.types import ModelHint, ModelInfo
from edge.decide.cloud_labels import answering
from edge.decide.labels import LabelRule
from edge.doctor import health, reach
from edge.doctor.finding import Finding, failed, ok, warning
from edge.endpoints import inference_endpoint, ingest_endpoint
from edge.settings import EdgeSettings
from servicekit.distribution import version
from servicekit.errors import Category, SightlineError, from_rpc_error

_CLOCK_WARNING_SECONDS = 2.0
_CLOCK_FAILED_SECONDS = 86_400.0  # a picture from further ahead is rejected by the ingest service


@dataclass(frozen=True, slots=True)
class Asked:
    """A service that is looked at."""

    name: str
    """`ingest` or `inference`."""
    full_name: str
    endpoint: Endpoint
    settings: EdgeSettings
    timeout: float
    """Seconds for each question."""
    device_labels: frozenset[str] = frozenset()
    """Of the device's model; empty: not known."""


def ingest(settings: EdgeSettings, timeout: float) -> Iterator[Finding]:
    """Check the ingest service.

    Raises:
        servicekit.settings.SettingsError, ValueError: it cannot be dialled with these settings.
    """
    endpoint = ingest_endpoint(settings)
    asked = Asked("ingest", health.INGEST, endpoint, settings, timeout)
    yield from _service(asked, _may_log)


def inference(
    settings: EdgeSettings, timeout: float, device_labels: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Check the inference service, if the mode asks it; see `ingest`."""
    if settings.mode == "device":
        yield ok("inference", "mode device: the inference service is not asked")
        return
    endpoint = inference_endpoint(settings)
    asked = Asked("inference", health.INFERENCE, endpoint, settings, timeout, device_labels)
    yield from _service(asked, _may_infer)


def _service(asked: Asked, may: Callable[[Asked], Iterator[Finding]]) -> Iterator[Finding]:
    if asked.settings.tls_ca_file is not None:
        tls = _tls(asked)
        yield tls
    try:
        found = health.ask(asked.endpoint, asked.full_name, asked.timeout)
    except SightlineError as error:
        yield _not_reached(asked, error)
        return
    where = f"{asked.endpoint.target} answers in {found.seconds * 1000:.1f} ms"
    if found.is_serving:
        yield ok(asked.name, f"{where} and is ready")
    else:
        yield failed(
            asked.name,
            f"{where}, but is {found.status}",
            "Wait until it has warmed up; if it stays so, its log says why.",
        )
    yield _clock(asked.name, found)
    yield _version(asked.name, found.version)
    if found.is_serving:
        yield from may(asked)


def _tls(asked: Asked) -> Finding:
    check = f"{asked.name} tls"
    try:
        end = reach.shake_hands(asked.endpoint.target, asked.settings, asked.timeout)
    except OSError as error:
        no_way = None
        if not isinstance(error, ssl.SSLError):
            no_way = reach.unreachable(asked.endpoint.target, asked.timeout)
        trouble = no_way or reach.refused(error, asked.settings)
        return failed(check, trouble.message, trouble.action)
    if end is None:
        return ok(check, "the server's certificate is trusted")
    day = f"{end:%Y-%m-%d}"
    if reach.ends_soon(end, datetime.now(UTC)):
        return warning(check, f"the server's certificate ends on {day}", "Renew it in time.")
    return ok(check, f"the server's certificate is trusted until {day}")


def _not_reached(asked: Asked, error: SightlineError) -> Finding:
    """Say why a health check failed, which gRPC itself does in its own words at most."""
    target = asked.endpoint.target
    if error.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return failed(
            asked.name,
            f"{target} is a gRPC server without {asked.full_name}",
            f"Set {asked.name}_target to the {asked.name} service; is it the other's address?",
        )
    if trouble := reach.unreachable(target, asked.timeout):
        return failed(asked.name, trouble.message, trouble.action)
    if asked.settings.tls_ca_file is None and reach.speaks_tls(target, asked.timeout):
        return failed(
            asked.name,
            f"{target} speaks TLS, and no tls_ca_file is set",
            "Set SIGHTLINE_EDGE_TLS_CA_FILE to the certificate that signed the server's.",
        )
    return failed(
        asked.name,
        f"{target} can be connected to, but does not answer as gRPC: {error}",
        "Check that the port is the service's and no proxy is between.",
    )


def _clock(name: str, found: health.Health) -> Finding:
    check, offset = f"{name} clock", found.clock_offset
    if offset is None:
        return warning(
            check, "the server does not tell its time: not checked", "Update the service."
        )
    known_to = found.seconds / 2
    said = f"{abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the server's"
    if abs(offset) - known_to >= _CLOCK_FAILED_SECONDS:
        action = "Set the clock, and keep it set: chrony or systemd-timesyncd."
        return failed(check, f"this device's clock is {said}", action)
    if abs(offset) - known_to >= _CLOCK_WARNING_SECONDS:
        action = "Keep it in step: chrony or systemd-timesyncd."
        return warning(check, f"this device's clock is {said}", action)
    return ok(check, f"the clocks are within {max(abs(offset), known_to) * 1000:.0f} ms")


def _version(name: str, server: str | None) -> Finding:
    check, own = f"{name} version", version()
    if server is None:
        return warning(check, "the server does not tell its version", "Update the service.")
    if server.split(".")[:2] != own.split(".")[:2]:
        text = f"the server runs Sightline {server}, this device {own}"
        return warning(check, text, "Bring both to one version; the server first.")
    return ok(check, f"the server runs Sightline {server}, this device {own}")


def _may_log(asked: Asked) -> Iterator[Finding]:
    device = asked.settings.device_id
    with asked.endpoint.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        # A spool that nobody has: its watermark is 0, and asking for it changes nothing.
        spool = ingest_service_pb2.GetWatermarkRequest(device_id=device, spool_id=str(uuid.uuid4()))
        metadata = asked.endpoint.metadata
        try:
            stub.GetWatermark(spool, timeout=asked.timeout, metadata=metadata)
        except grpc.RpcError as error:
            yield _refused(asked, from_rpc_error(error), f"--device {device} --scope log")
            return
        newest = ingest_service_pb2.ListPredictionsRequest(
            page_size=1, filter=ingest_pb2.PredictionFilter(device_ids=[device])
        )
        try:
            stub.ListPredictions(newest, timeout=asked.timeout, metadata=metadata)
            reads = "and read"
        except grpc.RpcError:
            reads = "and not read, which a node need not"
    yield ok("ingest credential", f"{_shown(asked)}: may log as {device} {reads}")


def _may_infer(asked: Asked) -> Iterator[Finding]:
    try:
        with InferenceClient(asked.endpoint, timeout=asked.timeout) as client:
            models = client.list_models()
    except SightlineError as error:
        yield _refused(asked, error, "--scope infer")
        return
    yield ok("inference credential", f"{_shown(asked)}: may ask")
    yield _models(asked.settings, models)
    if asked.device_labels:
        yield from _labels(asked, models)


def _shown(asked: Asked) -> str:
    return "the credential is accepted" if asked.endpoint.metadata else "no credential is needed"


def _refused(asked: Asked, error: SightlineError, flags: str) -> Finding:
    check = f"{asked.name} credential"
    if error.category is not Category.AUTH:
        return failed(check, f"the service did not answer: {error}", "Its log says more.")
    make = f"sightline keys create {asked.settings.device_id} {flags}"
    if error.reason == "CREDENTIAL_MISSING":
        action = f"Make one (`{make}`) and set SIGHTLINE_EDGE_API_KEY_FILE to its file."
    elif error.code is grpc.StatusCode.PERMISSION_DENIED:
        action = f"Make a key that may (`{make}`), or correct device_id."
    else:
        action = f"Put a good one into its place: `{make}`, on the server's file of keys."
    return failed(check, f"refused: {error}", action)


def _labels(asked: Asked, models: tuple[ModelInfo, ...]) -> Iterator[Finding]:
    """Hold the labels of the model that would answer against the device's."""
    settings, check = asked.settings, "inference labels"
    hint = ModelHint(settings.cloud_model, settings.cloud_model_version)
    model = answering(models, hint)
    if model is None:
        return
    (labels,) = (one.labels for one in models if ModelHint(one.name, one.version) == model)
    rule = LabelRule(lambda: asked.device_labels, settings.label_map)
    difference = rule.difference(labels)
    if not difference:
        yield ok(check, "the cloud's model has the device's labels")
    elif settings.cloud_labels == "any":
        yield ok(check, f"they differ, as cloud_labels allows: {difference}")
    else:
        taken = settings.mode not in ("cascade", "hedged")
        effect = "has its own classes" if taken else "is not taken"
        yield warning(
            check,
            f"they differ: {difference}. In mode {settings.mode} the cloud's answer {effect}",
            "Set cloud_model to one with the device's labels, map them by cloud_label_map, or set"
            " cloud_labels to any.",
        )


def _models(settings: EdgeSettings, models: tuple[ModelInfo, ...]) -> Finding:
    check, name, number = "inference model", settings.cloud_model, settings.cloud_model_version
    fitting = [
        one
        for one in models
        if (one.name == name or (not name and one.default_model))
        and (one.version == number or (not number and one.default_version))
    ]
    if fitting:
        found = fitting[0]
        return ok(check, f"{found.name} {found.version} on {found.provider}")
    has = ", ".join(f"{one.name} {one.version}" for one in models) or "none"
    wanted = f"{name or 'a default model'} {number}".rstrip()
    return failed(
        check,
        f"the service has no {wanted} (it has: {has})",
        "Set cloud_model and cloud_model_version to one that it has, or add it there.",
    )
