"""`sightline stats` and `sightline health`: what the services say of themselves."""

import json
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from edge.channel import Endpoint
from edge.commands.options import settings_with
from edge.doctor.health import INFERENCE, INGEST, ask
from edge.endpoints import inference_endpoint, ingest_endpoint
from servicekit.errors import SightlineError
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, ingest_service_pb2_grpc

Json = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.001)]


def stats(
    device: Annotated[
        list[str] | None, typer.Option(help="Only this device; may be given more than once.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be given more than once.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Ingest service, host:port.")] = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Count what is logged. Example: sightline stats --device gate-1 --json."""
    service = ingest_endpoint(settings_with(ingest_target=target))
    request = ingest_service_pb2.GetStatsRequest(
        filter=ingest_pb2.PredictionFilter(device_ids=device or (), model_names=model or ())
    )
    with service.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        answer = stub.GetStats(request, timeout=timeout, metadata=service.metadata)
    if as_json:
        typer.echo(json.dumps(_as_dict(answer)))
    else:
        _print_stats(answer)


def health(
    ingest: Annotated[str | None, typer.Option(help="Ingest service, host:port.")] = None,
    inference: Annotated[str | None, typer.Option(help="Inference service, host:port.")] = None,
    as_json: Json = False,
    timeout: Timeout = 5.0,
) -> None:
    """Ask both services whether they are ready. Exit code 0: both are; 1: one is not.

    Example: sightline health --json. `sightline doctor` says why one is not.
    """
    settings = settings_with(ingest_target=ingest, inference_target=inference)
    answers = {
        "ingest": _status(ingest_endpoint(settings), INGEST, timeout),
        "inference": _status(inference_endpoint(settings), INFERENCE, timeout),
    }
    if as_json:
        typer.echo(json.dumps(answers))
    else:
        for name, (target, status) in ((n, a.values()) for n, a in answers.items()):
            typer.echo(f"{name:10} {target:24} {status}")
    if any(answer["status"] != "SERVING" for answer in answers.values()):
        raise typer.Exit(1)


def _status(asked: Endpoint, name: str, timeout: float) -> dict[str, str]:
    try:
        status = ask(asked, name, timeout).status
    except SightlineError as error:
        status = error.code.name
    return {"target": asked.target, "status": status}


def _as_dict(answer: ingest_service_pb2.GetStatsResponse) -> dict[str, object]:
    """Return the answer with the contract's field names; 64-bit counts as numbers, not texts."""
    plain: dict[str, object] = MessageToDict(answer, preserving_proto_field_name=True)
    for field in answer.DESCRIPTOR.fields:
        if field.type == field.TYPE_INT64:
            plain[field.name] = getattr(answer, field.name)
    for name in ("by_device", "by_model", "by_source", "by_class"):
        plain[name] = [
            {"key": entry.key, "count": entry.count, "defects": entry.defects}
            for entry in getattr(answer, name)
        ]
    return plain


def _print_stats(answer: ingest_service_pb2.GetStatsResponse) -> None:
    console = Console()
    table = Table(show_header=False)
    table.add_row("predictions", f"{answer.total_predictions:,}")
    table.add_row("defects", f"{answer.defects_detected:,}")
    table.add_row("detections", f"{answer.total_detections:,}")
    table.add_row("rejected", f"{answer.rejected:,}")
    table.add_row("declared gaps", f"{answer.gap_sequences:,}")
    if answer.HasField("inference_time"):
        times = answer.inference_time
        quantiles = " / ".join(map(_milliseconds, (times.p50, times.p95, times.p99)))
        table.add_row("inference p50 / p95 / p99", quantiles)
    console.print(table)
    for title in ("device", "model", "source", "class"):
        counts = Table(title, "count", "defects")
        for entry in getattr(answer, f"by_{title}"):
            counts.add_row(entry.key, f"{entry.count:,}", f"{entry.defects:,}")
        console.print(counts)


def _milliseconds(duration: Duration) -> str:
    return f"{duration.ToMicroseconds() / 1000:.1f} ms"
