"""`sightline series`, `confidence`, `versions` and `frame`: figures of the log."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge.commands.options import IngestTarget, Json, settings_with
from edge.endpoints import ingest_endpoint
from servicekit.errors import from_rpc_error
from servicekit.plain import plain
from sightline.cli.read import Timeout
from sightline.cli.unknown import note_unknown
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2_grpc, reads_pb2

if TYPE_CHECKING:
    from grpc import UnaryUnaryMultiCallable

_HOUR = 3600
_NO_VALUE = "-"
_SHADES = " .:-=+*#%@"
"""Cells of a frame from none to the most detections."""
_LEAST_INDEX = 0.1
"""A population stability index that is commonly taken as a change."""
_A = TypeVar("_A", bound=Message)
_B = TypeVar("_B", bound=Message)
_Method: TypeAlias = (
    "Callable[[ingest_service_pb2_grpc.IngestServiceStub], UnaryUnaryMultiCallable[_A, _B]]"
)
Device = Annotated[
    list[str] | None,
    typer.Option("--device", help="Only this device; may be given more than once."),
]
Model = Annotated[
    list[str] | None,
    typer.Option("--model", help="Only this model; may be given more than once."),
]
Hours = Annotated[float, typer.Option(help="Hours up to now.", min=1 / 60)]


def series(
    device: Device = None,
    model: Model = None,
    hours: Hours = 24.0,
    bucket: Annotated[
        float, typer.Option(help="Minutes of a line: 1 to 60, or whole hours.", min=1)
    ] = 60.0,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Count predictions over time: defects, cloud answers and inference times.

    Example: sightline series --device gate-1 --hours 2 --bucket 10

    Times are those of the images, by the device's clock, in UTC.
    """
    selected = _selected(device, model)
    selected.end_time.GetCurrentTime()
    selected.start_time.FromNanoseconds(
        selected.end_time.ToNanoseconds() - round(hours * _HOUR * 1e9)
    )
    request = reads_pb2.GetSeriesRequest(filter=selected)
    request.bucket.FromSeconds(round(bucket * 60))
    answer = _ask(target, timeout, lambda stub: stub.GetSeries, request, device)
    if as_json:
        _print_json(answer)
        return
    titles = ("predictions", "defects", "detections", "by cloud", "p50 ms", "p95 ms")
    table = _table(("from (UTC)",), titles)
    for part in answer.buckets:
        table.add_row(
            f"{part.start_time.ToDatetime():%m-%d %H:%M}",
            f"{part.predictions:,}",
            f"{part.defects:,}" if part.with_verdict else _NO_VALUE,
            f"{part.detections:,}",
            f"{part.from_cloud:,}",
            *_milliseconds(part),
        )
    Console().print(table)


def confidence(
    device: Device = None,
    model: Model = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class", help="Only this class; may be given more than once."),
    ] = None,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Compare the confidences of the last 24 hours with those of the 7 days before.

    Example: sightline confidence --device gate-1

    A class has drifted if its population stability index is above 0.1 and above what chance alone
    seldom gives. Below 0.1 a change is commonly taken as small.
    """
    selected = _selected(device, model)
    selected.class_names.extend(class_name or ())
    request = reads_pb2.GetConfidenceRequest(filter=selected)
    answer = _ask(target, timeout, lambda stub: stub.GetConfidence, request, device)
    if as_json:
        _print_json(answer)
        return
    table = _table(("class",), ("now", "before", "mean now", "mean before", "index", "chance"))
    table.add_column("")
    _add_comparison(table, "all", answer.all)
    for comparison in answer.by_class:
        _add_comparison(table, escape(comparison.class_name) or "(no name)", comparison)
    Console().print(table)


def versions(
    device: Device = None,
    model: Model = None,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """List the versions of models in the log, with what each has answered.

    Example: sightline versions --model yolov8n
    """
    request = reads_pb2.ListModelVersionsRequest(filter=_selected(device, model))
    answer = _ask(target, timeout, lambda stub: stub.ListModelVersions, request, device)
    if as_json:
        _print_json(answer)
        return
    table = _table(
        ("model", "version"), ("predictions", "defects", "devices", "p50 ms", "last captured")
    )
    for version in answer.versions:
        p50, _ = _milliseconds(version)
        table.add_row(
            escape(version.model_name),
            escape(version.model_version) or _NO_VALUE,
            f"{version.predictions:,}",
            f"{version.defects:,}" if version.with_verdict else _NO_VALUE,
            f"{version.devices:,}",
            p50,
            _time(version.last_captured_at),
        )
    Console().print(table)


def frame(
    device: Device = None,
    model: Model = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only this class; not given: all together.")
    ] = None,
    target: IngestTarget = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Draw where on the frame the detections of the last 24 hours lie.

    Example: sightline frame --device gate-1 --class scratch
    """
    request = reads_pb2.GetFrameRequest(filter=_selected(device, model), columns=64)
    answer = _ask(target, timeout, lambda stub: stub.GetFrame, request, device)
    if as_json:
        _print_json(answer)
        return
    grids = [grid for grid in answer.grids if class_name in (None, grid.class_name)]
    cells = [sum(counts) for counts in zip(*(grid.cells for grid in grids), strict=True)]
    cells = cells or [0] * (answer.columns * answer.rows)
    edge = f"+{'-' * answer.columns}+"
    typer.echo(edge)
    for at in range(0, len(cells), answer.columns):
        typer.echo(f"|{_shaded(cells[at : at + answer.columns], max(cells))}|")
    typer.echo(edge)
    share = f", a sample of {answer.sampled:.1%}" if answer.sampled < 1 else ""
    typer.echo(
        f"{sum(cells):,} detections in {answer.predictions:,} predictions{share};"
        f" {answer.without_position:,} detections have no position"
    )


def _selected(
    devices: Sequence[str] | None, models: Sequence[str] | None
) -> ingest_pb2.PredictionFilter:
    return ingest_pb2.PredictionFilter(device_ids=devices or (), model_names=models or ())


def _ask(
    target: str | None,
    timeout: float,
    method: "_Method[_A, _B]",
    request: _A,
    devices: Sequence[str] | None,
) -> _B:
    """Return the answer; of the devices that the request names, note those that are unknown."""
    service = ingest_endpoint(settings_with(ingest_target=target))
    with service.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        try:
            answer = method(stub)(request, timeout=timeout, metadata=service.metadata)
        except grpc.RpcError as error:
            raise service.explain(from_rpc_error(error), "ingest", "--ingest") from error
    note_unknown(service, devices, (), timeout)
    return answer


def _print_json(answer: Message) -> None:
    typer.echo(json.dumps(plain(answer), ensure_ascii=False))


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table()
    for title in names:
        table.add_column(title, overflow="fold", no_wrap=title.endswith("(UTC)"))
    for title in numbers:
        table.add_column(title, justify="right")
    return table


def _add_comparison(table: Table, name: str, of: reads_pb2.ConfidenceComparison) -> None:
    indices = [
        f"{getattr(of, field):.3f}" if of.HasField(field) else _NO_VALUE
        for field in ("stability_index", "chance_index")
    ]
    drifted = of.HasField("stability_index") and of.stability_index > max(
        _LEAST_INDEX, of.chance_index
    )
    table.add_row(
        name,
        f"{sum(of.current):,}",
        f"{sum(of.reference):,}",
        _mean(of.current),
        _mean(of.reference),
        *indices,
        "drifted" if drifted else "",
        style="yellow" if drifted else None,
    )


def _mean(bins: Sequence[int]) -> str:
    """Return the mean confidence, from the middles of the bins."""
    total = sum(bins)
    if not total:
        return _NO_VALUE
    return f"{sum(n * (at + 0.5) / len(bins) for at, n in enumerate(bins)) / total:.2f}"


def _shaded(cells: Sequence[int], most: int) -> str:
    last = len(_SHADES) - 1
    return "".join(_SHADES[-(-count * last // most) if count else 0] for count in cells)


def _milliseconds(of: reads_pb2.SeriesBucket | reads_pb2.ModelVersion) -> tuple[str, str]:
    if not of.HasField("inference_time"):
        return _NO_VALUE, _NO_VALUE
    p50, p95 = (_as_ms(time) for time in (of.inference_time.p50, of.inference_time.p95))
    return p50, p95


def _as_ms(time: Duration) -> str:
    return f"{time.ToMicroseconds() / 1000:.1f}"


def _time(time: Timestamp) -> str:
    return f"{time.ToDatetime():%Y-%m-%d %H:%M}"
