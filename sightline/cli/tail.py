"""`sightline tail`: the log as it grows, on a terminal or as JSON lines."""

import json
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Any, Self

import grpc
import typer

from edge.channel import Endpoint
from edge.commands.options import IngestTarget, Json, settings_with
from edge.endpoints import ingest_endpoint
from servicekit.errors import SightlineError, from_rpc_error
from servicekit.names import printable
from servicekit.plain import plain
from sightline.cli.unknown import note_unknown
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2_grpc, reads_pb2
from sightline.types.v1 import prediction_pb2

_PATIENCE = 5.0
"""Seconds to wait for what is asked before the log is followed."""
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Times between two attempts to resume, the last one for all others, s."""
_MOST_DETECTIONS = 3


def tail(
    device: Annotated[
        list[str] | None, typer.Option(help="Only this device; may be given more than once.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; may be given more than once.")
    ] = None,
    defects: Annotated[bool, typer.Option("--defects", help="Only defects.")] = False,
    max_per_second: Annotated[
        int,
        typer.Option(help="Predictions a second; the rest is counted only.", min=1, max=1000),
    ] = 50,
    target: IngestTarget = None,
    as_json: Json = False,
) -> None:
    """Print what is logged from now on, until Ctrl-C.

    Example: sightline tail --device gate-1 --defects

    It resumes by itself after a restart of the service or a lost connection, and misses nothing.
    With --json each line is a prediction, or `{"left_out": 3214}`.
    """
    service = ingest_endpoint(settings_with(ingest_target=target))
    filter_ = ingest_pb2.PredictionFilter(device_ids=device or (), model_names=model or ())
    if defects:
        filter_.defect_detected = True
    request = reads_pb2.WatchPredictionsRequest(filter=filter_, max_per_second=max_per_second)
    with _CtrlC() as ctrl_c:
        try:
            note_unknown(service, device, (), _PATIENCE)
            for answer in _answers(service, request, ctrl_c):
                if answer.left_out:
                    typer.echo(_left_out(answer.left_out, as_json))
                for row in answer.predictions:
                    text = json.dumps(plain(row), ensure_ascii=False) if as_json else _line(row)
                    typer.echo(text)
        except KeyboardInterrupt:  # as a person ends it
            return


class _CtrlC:
    """Ctrl-C, remembered: Python only prints an exception that interrupts gRPC's own code."""

    def __init__(self) -> None:
        self.was_pressed = False
        self._call: Any = None
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def cancels(self, call: Any) -> None:  # noqa: ANN401
        """Let Ctrl-C cancel this call, also if it was pressed before."""
        self._call = call
        if self.was_pressed:
            call.cancel()

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        self.was_pressed = True
        if self._call is not None:
            self._call.cancel()
        raise KeyboardInterrupt


def _answers(
    service: Endpoint, request: reads_pb2.WatchPredictionsRequest, ctrl_c: _CtrlC
) -> Iterator[reads_pb2.WatchPredictionsResponse]:
    """Yield the answers of one stream after another, each resumed where the last one ended.

    Raises:
        SightlineError: the first stream failed before its first answer, or an error is permanent.
    """
    failures = 0
    with service.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        while not ctrl_c.was_pressed:
            try:
                call = stub.WatchPredictions(request, metadata=service.metadata)
                ctrl_c.cancels(call)
                for answer in call:
                    if failures:
                        typer.echo("following again", err=True)
                    failures, request.resume_token = 0, answer.resume_token
                    yield answer
                error = SightlineError(grpc.StatusCode.UNAVAILABLE, "ENDED", "the stream ended")
            except grpc.RpcError as caught:
                if ctrl_c.was_pressed:
                    return
                error = service.explain(from_rpc_error(caught), "ingest", "--ingest")
            _judge(error, request)
            if not failures:
                typer.echo(f"{error}; trying again until Ctrl-C", err=True)
            time.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1


def _judge(error: SightlineError, request: reads_pb2.WatchPredictionsRequest) -> None:
    """Raise an error that trying again does not mend; begin anew where nothing can be resumed."""
    if error.reason == "RESUME_TOKEN_EXPIRED":
        typer.echo("predictions were deleted by retention before they were shown", err=True)
        request.resume_token = ""
    elif not request.resume_token or not error.retryable:
        raise error


def _left_out(number: int, as_json: bool) -> str:
    return json.dumps({"left_out": number}) if as_json else f"+{number:,} more"


def _line(row: ingest_pb2.StoredPrediction) -> str:
    """Return one line for a person: time, device, verdict and detections."""
    prediction = row.prediction
    found = sorted(prediction.detections, key=lambda d: -d.confidence)
    words = [f"{d.class_name or d.class_id} {d.confidence:.2f}" for d in found[:_MOST_DETECTIONS]]
    if len(found) > _MOST_DETECTIONS:
        words.append(f"{len(found) - _MOST_DETECTIONS} more")
    verdict = "      "
    if prediction.HasField("defect_detected"):
        verdict = "defect" if prediction.defect_detected else "ok    "
    cloud = prediction.source == prediction_pb2.PREDICTION_SOURCE_CLOUD
    received = f"{row.received_at.ToDatetime():%H:%M:%S.%f}"[:-3]
    origin = "cloud " if cloud else "device"
    line = f"{received}  {row.device_id}  {origin}  {verdict}  {', '.join(words) or '-'}"
    return printable(line)
