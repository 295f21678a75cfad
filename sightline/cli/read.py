"""`sightline stats` and `sightline health`: what the services have stored, and whether they run."""

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.channel import Endpoint
from edge.commands.options import InferenceTarget, IngestTarget, Json, settings_with
from edge.doctor.health import INFERENCE, INGEST, ask
from edge.endpoints import inference_endpoint, ingest_endpoint
from servicekit.errors import SightlineError, from_rpc_error
from servicekit.help import CONNECTION
from servicekit.terminal import sentence
from sightline.cli.unknown import note_unknown
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, ingest_service_pb2_grpc

Timeout = Annotated[
    float,
    typer.Option(help="Seconds to wait for an answer.", min=0.001, rich_help_panel=CONNECTION),
]
_NO_VERDICT = "-"
# Field of the answer, title of the key's column, and what is counted.
_TABLES = (
    ("by_device", "device", "predictions"),
    ("by_model", "model", "predictions"),
    ("by_source", "answered by", "predictions"),
    ("by_cloud_reason", "why the cloud answered", "predictions"),
    ("by_source_label", "source (label)", "predictions"),
    ("by_class", "class", "detections"),
)


class ServiceName(StrEnum):
    """A service that `sightline health` can ask."""

    INGEST = "ingest"
    INFERENCE = "inference"


def stats(
    device: Annotated[
        list[str] | None, typer.Option(help="Only this device; may be given more than once.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be given more than once.")
    ] = None,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Count what is logged, by device, model, source, reason and class.

    Example: sightline stats --device gate-1

    A dash in place of a count of defects: no prediction has a verdict (setting defect_classes).
    """
    service = ingest_endpoint(settings_with(ingest_target=target))
    filter_ = ingest_pb2.PredictionFilter(device_ids=device or (), model_names=model or ())
    answer = _get_stats(service, filter_, timeout)
    if as_json:
        typer.echo(json.dumps(_as_dict(answer)))
    else:
        _print_stats(answer)
    note_unknown(service, device, (count.key for count in answer.by_device), timeout)


def _get_stats(
    service: Endpoint, filter_: ingest_pb2.PredictionFilter, timeout: float
) -> ingest_service_pb2.GetStatsResponse:
    """Return the statistics, with details if the service counts them in time.

    The service reads every prediction for the details, and keeps sums for the rest.
    """
    request = ingest_service_pb2.GetStatsRequest(filter=filter_)
    with service.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        try:
            answer = stub.GetStats(request, timeout=timeout, metadata=service.metadata)
        except grpc.RpcError as error:
            raise service.explain(from_rpc_error(error), "ingest", "--ingest") from error
        request.details = True
        try:
            return stub.GetStats(request, timeout=timeout, metadata=service.metadata)
        except grpc.RpcError as error:
            refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            if not refused and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            reason = (
                f"were not counted: {sentence(from_rpc_error(error))}"
                if refused
                else f"were not counted within {timeout:g} s: raise --timeout"
            )
    typer.echo(f"verdicts, cloud reasons and source labels {reason}", err=True)
    return answer


def health(
    service: Annotated[
        ServiceName | None, typer.Option(help="Ask only this service; not given: both.")
    ] = None,
    ingest: IngestTarget = None,
    inference: InferenceTarget = None,
    as_json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Ask both services, or one, whether they are ready.

    Example: sightline health --json

    Example: sightline health --service ingest

    Exit code 0: those asked are ready; 1: one is not, and `sightline doctor` finds out why.
    """
    settings = settings_with(ingest_target=ingest, inference_target=inference)
    endpoints = {
        ServiceName.INGEST: (ingest_endpoint(settings), INGEST),
        ServiceName.INFERENCE: (inference_endpoint(settings), INFERENCE),
    }
    answers = {
        name.value: _status(endpoint, full_name, timeout)
        for name, (endpoint, full_name) in endpoints.items()
        if service in (None, name)
    }
    if as_json:
        typer.echo(json.dumps(answers))
    else:
        for name, answer in answers.items():
            typer.echo(f"{name:10} {answer['target']:24} {answer['status']}")
    if any(answer["status"] != "SERVING" for answer in answers.values()):
        raise typer.Exit(1)


def _status(service: Endpoint, name: str, timeout: float) -> dict[str, str]:
    try:
        status = ask(service, name, timeout).status
    except SightlineError as error:
        status = error.code.name
    return {"target": service.target, "status": status}


def _as_dict(answer: ingest_service_pb2.GetStatsResponse) -> dict[str, object]:
    """Return the answer with the contract's field names; 64-bit counts as numbers, not texts."""
    plain: dict[str, object] = MessageToDict(answer, preserving_proto_field_name=True)
    for field in answer.DESCRIPTOR.fields:
        if field.type == field.TYPE_INT64 and (not field.has_presence or field.name in plain):
            plain[field.name] = getattr(answer, field.name)
    for name, _, _ in _TABLES:
        plain[name] = [_count_as_dict(entry) for entry in getattr(answer, name)]
    return plain


def _count_as_dict(entry: ingest_pb2.CountByKey) -> dict[str, object]:
    counts = {"key": entry.key, "count": entry.count, "defects": entry.defects}
    return counts | ({"with_verdict": entry.with_verdict} if entry.HasField("with_verdict") else {})


def _print_stats(answer: ingest_service_pb2.GetStatsResponse) -> None:
    console = Console()
    console.print(_totals(answer))
    for field, title, unit in _TABLES:
        if entries := getattr(answer, field):
            console.print(_counts(entries, title, unit))


def _totals(answer: ingest_service_pb2.GetStatsResponse) -> Table:
    table = Table("all that match", "")
    table.add_row("predictions", f"{answer.total_predictions:,}")
    if answer.HasField("first_captured_at"):
        table.add_row("first captured", _time(answer.first_captured_at))
        table.add_row("last captured", _time(answer.last_captured_at))
    table.add_row("predictions with a defect", _defects_of_all(answer))
    table.add_row("detections", f"{answer.total_detections:,}")
    if answer.HasField("inference_time"):
        times = answer.inference_time
        quantiles = " / ".join(map(_milliseconds, (times.p50, times.p95, times.p99)))
        table.add_row("inference p50 / p95 / p99", quantiles)
    table.add_row("rejected predictions", f"{answer.rejected:,}")
    table.add_row("lost predictions (gaps)", f"{answer.gap_sequences:,}")
    return table


def _defects_of_all(answer: ingest_service_pb2.GetStatsResponse) -> str:
    if not answer.HasField("with_verdict"):  # a server that does not count verdicts
        return f"{answer.defects_detected:,}"
    if not answer.with_verdict:
        return f"{_NO_VERDICT} (no prediction has a verdict)"
    return f"{answer.defects_detected:,} of {answer.with_verdict:,} with a verdict"


def _counts(entries: Iterable[ingest_pb2.CountByKey], title: str, unit: str) -> Table:
    table = Table()
    table.add_column(title, overflow="fold")
    table.add_column(unit, justify="right")
    if unit == "predictions":
        table.add_column("with a defect", justify="right")
    for entry in entries:
        counts = [f"{entry.count:,}"]
        if unit == "predictions":
            unknown = entry.HasField("with_verdict") and not entry.with_verdict
            counts.append(_NO_VERDICT if unknown else f"{entry.defects:,}")
        table.add_row(escape(entry.key), *counts)
    return table


def _time(time: Timestamp) -> str:
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC"


def _milliseconds(duration: Duration) -> str:
    return f"{duration.ToMicroseconds() / 1000:.1f} ms"
