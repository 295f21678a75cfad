"""Latency of `log()` at 1 kHz with the server down: `python -m bench.log_call`.

Beside it, in the same run and on the same predictions, `on_emit` of OpenTelemetry's
BatchLogRecordProcessor, whose exporter finds no collector either. The order alternates, because
the second finds the CPU's caches warm. The cost of making a record is measured separately, as
`record_us`, and `otel_record_us` likewise. `--task segment` adds a mask to each detection, and
`--task pose` keypoints.
"""

import argparse
import json
import logging
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.resources import Resource

from bench._shapes import TASKS, Task, fields
from sightline import Box, Detection, Prediction, PredictionLogger

NOBODY = ("127.0.0.1", 1)
RESOURCE = Resource({"device_id": "bench"})


def prediction(number: int, at: float = 0.0, task: Task = "detect") -> Prediction:
    """Return a record with three detections, shifted by `at` pixels."""
    detections = tuple(
        Detection(
            index,
            name,
            0.9 - at / 1000,
            Box(at, 20 + at, 300 + at, 40.25 * at),
            **fields(task, number),
        )
        for index, name in enumerate(("person", "bus", "car"))
    )
    return Prediction(
        f"frame-{number:09d}", "yolov8n", image_width=1920, image_height=1080, detections=detections
    )


def log_record(prediction: Prediction) -> ReadWriteLogRecord:
    """Return the same record in the form that OpenTelemetry's SDK hands to a processor."""
    record = LogRecord(
        timestamp=time.time_ns(),
        severity_number=SeverityNumber.INFO,
        body=prediction.image_id,
        attributes={
            "model_name": prediction.model_name,
            "image_width": prediction.image_width,
            "image_height": prediction.image_height,
            "detections": list(map(_plain, prediction.detections)),
        },
    )
    return ReadWriteLogRecord(log_record=record, resource=RESOURCE)


def _plain(detection: Detection) -> dict[str, Any]:
    """Return a detection in the types that attributes may have."""
    plain = asdict(detection if detection.mask is None else replace(detection, mask=None))
    if detection.mask is not None:
        plain["mask"] = [list(points) for points in detection.mask.polygons]
    return plain


class NoCollector(LogRecordExporter):
    """An exporter whose connection is refused. It gives up at once, the cheapest case."""

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:  # noqa: ARG002 (the interface has it)
        """Try to connect, and fail."""
        try:
            socket.create_connection(NOBODY, timeout=1).close()
        except OSError:
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 (the interface has it)
        """Do nothing: nothing is buffered."""
        return True

    def shutdown(self) -> None:
        """Do nothing: nothing is open."""


@contextmanager
def otel() -> Iterator[Callable[[ReadWriteLogRecord], None]]:
    """Yield `on_emit` of a processor with the SDK's own defaults."""
    processor = BatchLogRecordProcessor(NoCollector())
    try:
        yield processor.on_emit
    finally:
        processor.shutdown()  # type: ignore[no-untyped-call]  # published without its type


def microseconds(work: Callable[[], object]) -> float:
    """Return the duration of the work."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000


def measure(
    calls: int,
    log: PredictionLogger,
    emit: Callable[[ReadWriteLogRecord], None],
    task: Task = "detect",
) -> dict[str, list[float]]:
    """Return the durations of the calls in microseconds; one of each per millisecond."""
    taken: dict[str, list[float]] = {"": [], "otel_": [], "record": [], "otel_record": []}
    began = time.perf_counter()
    for number in range(calls):
        at = time.perf_counter_ns()
        ours = prediction(number, task=task)
        between = time.perf_counter_ns()
        theirs = log_record(ours)
        taken["otel_record"].append((time.perf_counter_ns() - between) / 1000)
        taken["record"].append((between - at) / 1000)
        first, second = ("", partial(log, ours)), ("otel_", partial(emit, theirs))
        for name, call in (first, second) if number % 2 else (second, first):
            taken[name].append(microseconds(call))
        time.sleep(max(0.0, began + (number + 1) / 1000 - time.perf_counter()))
    return taken


def main() -> None:
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=20.0)
    arguments.add_argument("--task", choices=TASKS, default="detect")
    options = arguments.parse_args()
    logging.getLogger("edge").setLevel(logging.ERROR)  # the server is down on purpose
    calls = int(options.seconds * 1000)
    with tempfile.TemporaryDirectory() as folder, otel() as emit:
        target = ":".join(map(str, NOBODY))
        log = PredictionLogger(target, device_id="bench", spool_dir=Path(folder) / "spool")
        taken = measure(calls, log, emit, options.task)
        log.flush(30)
        spooled = log.stats().spooled
        log.close(1)
    line: dict[str, object] = {"bench": "log_call", "task": options.task}
    line |= {"calls": calls, "spooled": spooled}
    for name in ("", "otel_"):
        cuts = statistics.quantiles(taken[name], n=1000)
        for share, cut in (("p50", 499), ("p99", 989), ("p999", 998)):
            line[f"{name}{share}_us"] = round(cuts[cut], 2)
    p50, otel_p50 = (statistics.median(taken[name]) for name in ("", "otel_"))
    line["ratio_to_otel_p50"] = round(p50 / otel_p50, 3)
    for name in ("record", "otel_record"):
        line[f"{name}_us"] = round(statistics.median(taken[name]), 1)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
