"""Checks of the two services: connection, certificate, status, clock, credential, models."""

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
from edge.decide.class_names import unknown_renamed
from edge.decide.cloud_labels import answering
from edge.decide.labels import LabelRule
from edge.doctor import health, reach
from edge.doctor.finding import Finding, failed, ok, warning
from edge.endpoints import inference_endpoint, ingest_endpoint
from edge.settings import EdgeSettings
from servicekit.distribution import version
from servicekit.errors import Category, SightlineError, from_rpc_error
from servicekit.routes import Proxy, proxy_of

_CLOCK_WARNING_SECONDS = 2.0
_CLOCK_FAILED_SECONDS = 86_400.0  # an image from further ahead is rejected by the ingest service


@dataclass(frozen=True, slots=True)
class CheckedService:
    """A service that is checked."""

    name: str
    """`ingest` or `inference`."""
    full_name: str
    endpoint: Endpoint
    settings: EdgeSettings
    timeout: float
    """Seconds for each request."""
    device_labels: frozenset[str] = frozenset()
    """Of the device's model; empty: not known."""


def ingest(settings: EdgeSettings, timeout: float) -> Iterator[Finding]:
    """Check the ingest service.

    Raises:
        servicekit.settings.SettingsError, ValueError: the settings do not make a valid connection.
    """
    endpoint = ingest_endpoint(settings)
    service = CheckedService("ingest", health.INGEST, endpoint, settings, timeout)
    yield from _service(service, _may_log)


def inference(
    settings: EdgeSettings, timeout: float, device_labels: frozenset[str] = frozenset()
) -> Iterator[Finding]:
    """Check the inference service, if the mode asks it; see `ingest`."""
    if settings.mode == "device":
        yield ok("inference", "mode device: the inference service is not used")
        return
    endpoint = inference_endpoint(settings)
    service = CheckedService(
        "inference", health.INFERENCE, endpoint, settings, timeout, device_labels
    )
    yield from _service(service, _may_infer)


def _service(
    service: CheckedService, may: Callable[[CheckedService], Iterator[Finding]]
) -> Iterator[Finding]:
    if proxy := proxy_of(service.endpoint.target):
        yield _route(service, proxy)
    if service.settings.tls_ca_file is not None:
        tls = _tls(service)
        yield tls
    try:
        report = health.ask(service.endpoint, service.full_name, service.timeout)
    except SightlineError as error:
        yield _not_reached(service, error)
        return
    where = f"{service.endpoint.target} answers in {report.seconds * 1000:.1f} ms"
    if report.is_serving:
        yield ok(service.name, f"{where} and is ready")
    else:
        yield failed(
            service.name,
            f"{where}, but is {report.status}",
            "Wait until it has warmed up. If it stays so, see its log.",
        )
    yield _clock(service.name, report)
    yield _version(service.name, report.version)
    if report.is_serving:
        yield from may(service)


def _route(service: CheckedService, proxy: Proxy) -> Finding:
    check = f"{service.name} route"
    text = f"calls go through the proxy {proxy.address}, which the variable {proxy.variable} names"
    if service.settings.tls_ca_file is not None:
        return ok(check, text)
    action = "Set tls_ca_file, or add the host to no_grpc_proxy to dial it directly."
    return warning(check, f"{text}, and it can read them: they have no TLS", action)


def _tls(service: CheckedService) -> Finding:
    check = f"{service.name} tls"
    try:
        end = reach.shake_hands(service.endpoint.target, service.settings, service.timeout)
    except OSError as error:
        no_way = None
        if not isinstance(error, ssl.SSLError):
            no_way = reach.unreachable(service.endpoint.target, service.timeout)
        trouble = no_way or reach.refused(error, service.settings)
        return failed(check, trouble.message, trouble.action)
    if end is None:
        return ok(check, "the server's certificate is trusted")
    day = f"{end:%Y-%m-%d}"
    if reach.ends_soon(end, datetime.now(UTC)):
        return warning(check, f"the server's certificate ends on {day}", "Renew it in time.")
    return ok(check, f"the server's certificate is trusted until {day}")


def _not_reached(service: CheckedService, error: SightlineError) -> Finding:
    """Return the reason why a health check failed, in more detail than gRPC reports."""
    target = service.endpoint.target
    if error.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return failed(
            service.name,
            f"{target} is a gRPC server without {service.full_name}",
            f"Set {service.name}_target to the {service.name} service: this may be the other one.",
        )
    if trouble := reach.unreachable(target, service.timeout):
        return failed(service.name, trouble.message, trouble.action)
    if service.settings.tls_ca_file is None and reach.speaks_tls(target, service.timeout):
        return failed(
            service.name,
            f"{target} speaks TLS, and no tls_ca_file is set",
            "Set SIGHTLINE_EDGE_TLS_CA_FILE to the certificate that signed the server's.",
        )
    return failed(
        service.name,
        f"{target} can be connected to, but does not answer as gRPC: {error}",
        "Check that the port is the service's and that no proxy is in between.",
    )


def _clock(name: str, report: health.HealthReport) -> Finding:
    check, offset = f"{name} clock", report.clock_offset
    if offset is None:
        return warning(
            check, "the server does not send its time: not checked", "Update the service."
        )
    known_to = report.seconds / 2
    text = f"{abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the server's"
    if abs(offset) - known_to >= _CLOCK_FAILED_SECONDS:
        action = "Set the clock, and keep it set: chrony or systemd-timesyncd."
        return failed(check, f"this device's clock is {text}", action)
    if abs(offset) - known_to >= _CLOCK_WARNING_SECONDS:
        action = "Keep it in step: chrony or systemd-timesyncd."
        return warning(check, f"this device's clock is {text}", action)
    return ok(check, f"the clocks are within {max(abs(offset), known_to) * 1000:.0f} ms")


def _version(name: str, server: str | None) -> Finding:
    check, own = f"{name} version", version()
    if server is None:
        return warning(check, "the server does not send its version", "Update the service.")
    if server.split(".")[:2] != own.split(".")[:2]:
        mismatch = f"the server runs Sightline {server}, this device {own}"
        return warning(check, mismatch, "Update both to one version, the server first.")
    return ok(check, f"the server runs Sightline {server}, this device {own}")


def _may_log(service: CheckedService) -> Iterator[Finding]:
    device = service.settings.device_id
    with service.endpoint.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        # A spool that does not exist: its watermark is 0, and the request changes nothing.
        spool = ingest_service_pb2.GetWatermarkRequest(device_id=device, spool_id=str(uuid.uuid4()))
        metadata = service.endpoint.metadata
        try:
            stub.GetWatermark(spool, timeout=service.timeout, metadata=metadata)
        except grpc.RpcError as error:
            yield _refused(service, from_rpc_error(error), f"--device {device} --scope log")
            return
        newest = ingest_service_pb2.ListPredictionsRequest(
            page_size=1, filter=ingest_pb2.PredictionFilter(device_ids=[device])
        )
        try:
            stub.ListPredictions(newest, timeout=service.timeout, metadata=metadata)
            reads = "and read"
        except grpc.RpcError:
            reads = "and not read, which a node need not"
    yield ok("ingest credential", f"{_shown(service)}: may log as {device} {reads}")


def _may_infer(service: CheckedService) -> Iterator[Finding]:
    try:
        with InferenceClient(service.endpoint, timeout=service.timeout) as client:
            models = client.list_models()
    except SightlineError as error:
        yield _refused(service, error, "--scope infer")
        return
    yield ok("inference credential", f"{_shown(service)}: may infer")
    yield _models(service.settings, models)
    yield from _renamed(service.settings, models)
    if service.device_labels:
        yield from _labels(service, models)


def _shown(service: CheckedService) -> str:
    return "the credential is accepted" if service.endpoint.metadata else "no credential is needed"


def _refused(service: CheckedService, error: SightlineError, flags: str) -> Finding:
    check = f"{service.name} credential"
    if error.category is not Category.AUTH:
        return failed(check, f"the service did not answer: {error}", "See its log.")
    create = f"sightline keys create {service.settings.device_id} {flags}"
    if error.reason == "CREDENTIAL_MISSING":
        action = f"Create one (`{create}`) and set SIGHTLINE_EDGE_API_KEY_FILE to its file."
    elif error.code is grpc.StatusCode.PERMISSION_DENIED:
        action = f"Create a key with the permission (`{create}`), or correct device_id."
    else:
        action = f"Replace it by a valid one: `{create}`, with the server's file of keys."
    return failed(check, f"refused: {error}", action)


def _answering_labels(
    settings: EdgeSettings, models: tuple[ModelInfo, ...]
) -> tuple[str, ...] | None:
    """Return the labels of the model that would answer; None: it is not known."""
    hint = ModelHint(settings.cloud_model, settings.cloud_model_version)
    model = answering(models, hint)
    if model is None:
        return None
    (labels,) = (info.labels for info in models if ModelHint(info.name, info.version) == model)
    return labels


def _renamed(settings: EdgeSettings, models: tuple[ModelInfo, ...]) -> Iterator[Finding]:
    """Check that the cloud's model has the classes that cloud_label_map renames."""
    labels = _answering_labels(settings, models)
    if labels and settings.label_map:
        if unknown := unknown_renamed(labels, settings.label_map):
            yield failed("inference classes", unknown, "Correct the name before the =.")
        else:
            yield ok("inference classes", "the cloud's model has every class of cloud_label_map")


def _labels(service: CheckedService, models: tuple[ModelInfo, ...]) -> Iterator[Finding]:
    """Compare the labels of the model that would answer with the device's."""
    settings, check = service.settings, "inference labels"
    labels = _answering_labels(settings, models)
    if labels is None:
        return
    rule = LabelRule(lambda: service.device_labels, settings.label_map)
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
        info
        for info in models
        if (info.name == name or (not name and info.default_model))
        and (info.version == number or (not number and info.default_version))
    ]
    if fitting:
        info = fitting[0]
        return ok(check, f"{info.name} {info.version} on {info.provider}")
    has = ", ".join(f"{info.name} {info.version}" for info in models) or "none"
    wanted = f"{name or 'a default model'} {number}".rstrip()
    return failed(
        check,
        f"the service has no {wanted} (it has: {has})",
        "Set cloud_model and cloud_model_version to one that it has, or add it there.",
    )
