"""End-to-end commit rate, beside that of DuckDB alone: `python -m bench.ingest`.

Eight devices stream predictions with three detections each into an ingest service in a process of
its own; a prediction counts when its commit is acknowledged. The ceiling is the same Arrow
table inserted into the same schema in this process, through the service's own store, in groups of
4 MiB. The other baseline is the HTTP service of `bench.http_sqlite`, whose devices post the same
batches. Rounds of the three alternate; the figures are medians. `--task segment` adds a mask to
each detection, and `--task pose` keypoints; the HTTP service stores boxes only, and is left out.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc
import uvloop
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2
from sightline.types.v1 import prediction_pb2

from bench import http_sqlite
from bench._shapes import TASKS, Task, add_to
from edge.options import LogOptions
from ingest_service.receive.decision import decide
from ingest_service.receive.group import Message, prepare
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import Changes, SpoolKey, StreamOpening, Watermark
from sightline.cli.processes import ServiceProcess

DEVICES = 8
STREAM = LogOptions.stream_size
"""Predictions in one stream, as an edge node sends them."""
GROUP_BYTES = 4 * 1024 * 1024
METHOD = "/sightline.ingest.v1.IngestService/PredictionLog"


def predictions(first: int, count: int, task: Task = "detect") -> list[prediction_pb2.Prediction]:
    """Return predictions with ascending sequences and three detections each."""
    results = []
    for sequence in range(first, first + count):
        prediction = prediction_pb2.Prediction(
            sequence=sequence,
            image_id=f"frame-{sequence:09d}",
            image_width=1920,
            image_height=1080,
            model_name="yolov8n",
            model_version="1",
            source=prediction_pb2.PREDICTION_SOURCE_DEVICE,
            defect_detected=sequence % 10 == 0,
        )
        prediction.captured_at.GetCurrentTime()
        prediction.inference_time.FromMilliseconds(12)
        for index, name in enumerate(("person", "bus", "car")):
            detection = prediction.detections.add(
                class_id=index,
                class_name=name,
                confidence=0.9 - index / 10,
                box={"x_min": 10, "y_min": 20, "x_max": 300.5, "y_max": 400.25},
            )
            add_to(detection, task, sequence)
        results.append(prediction)
    return results


def payloads(first: int, count: int, batch: int, task: Task = "detect") -> list[bytes]:
    """Return predictions as messages of `batch` each, without a header."""
    every = predictions(first, count, task)
    return [
        ingest_service_pb2.PredictionLogRequest(
            predictions=every[at : at + batch]
        ).SerializeToString()
        for at in range(0, count, batch)
    ]


def header(device: str, spool: str) -> bytes:
    """Return a stream's first message."""
    return ingest_service_pb2.PredictionLogRequest(
        header=ingest_pb2.LogHeader(device_id=device, spool_id=spool, client="bench")
    ).SerializeToString()


async def send(target: str, streams: Sequence[Sequence[bytes]], seconds: float) -> float:
    """Return committed predictions per second, over every device's streams.

    Args:
        target: the service's address.
        streams: the messages of one stream after the other, at least one, the same for every
            device. Each device sends them into its own spool, and starts a new spool with the first
            message after it has sent the last, so that no machine runs out of messages.
        seconds: duration after which no stream is started.
    """
    began = time.perf_counter()

    async def device(number: int) -> int:
        committed = 0
        async with grpc.aio.insecure_channel(target) as channel:
            log = channel.stream_unary(
                METHOD,
                request_serializer=None,
                response_deserializer=ingest_service_pb2.PredictionLogResponse.FromString,
            )
            while True:
                spool = str(uuid.uuid4())
                for messages in streams:
                    if time.perf_counter() - began > seconds:
                        return committed
                    answer = await log(iter([header(f"bench-{number}", spool), *messages]))
                    committed += answer.accepted

    done = await asyncio.gather(*(device(number) for number in range(DEVICES)))
    return sum(done) / (time.perf_counter() - began)


def arrow_changes(messages: Sequence[bytes]) -> Changes:
    """Return what the service would write for one group of messages."""
    spool = SpoolKey("bench", str(uuid.uuid4()))
    opening = StreamOpening(spool, datetime.now(UTC), None, None, "bench")
    group = [Message(0, opening, payload, first=False) for payload in messages]
    return decide(prepare(group, PtarsDecoder(), datetime.now(UTC)), {spool: Watermark()})[0]


def insert(folder: Path, changes: Changes, seconds: float) -> float:
    """Return the predictions per second that this process inserts and commits by itself."""
    store = DuckDBStore(folder / f"{uuid.uuid4()}.duckdb")
    with contextlib.closing(store):
        began, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            with store.transaction() as transaction:
                transaction.write_bookkeeping(changes, datetime.now(UTC))
                transaction.write_predictions(changes.predictions, datetime.now(UTC))
            count += changes.predictions.num_rows
    return count / elapsed


@contextlib.contextmanager
def service(folder: Path, *flags: str) -> Iterator[ServiceProcess]:
    """Run an ingest service with a new database."""
    own = ["--listen", "127.0.0.1:0", "--database", str(folder / f"{uuid.uuid4()}.duckdb")]
    with ServiceProcess("ingest_service", [*own, "--log-level", "warning", *flags]) as running:
        yield running


def rounds(count: int, *measures: Callable[[], float]) -> list[float]:
    """Return the median of each measure over rounds in which they alternate."""
    taken = [[measure() for measure in measures] for _ in range(count)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def compare(folder: Path, batch: int, options: argparse.Namespace) -> dict[str, object]:
    """Return the medians for one batch size."""
    streams = [
        payloads(1 + at * STREAM, STREAM, batch, options.task) for at in range(options.streams)
    ]
    every = [message for messages in streams for message in messages]
    changes = arrow_changes(every[: max(GROUP_BYTES // len(every[0]), 1)])

    def end_to_end() -> float:
        with service(folder) as running:
            return uvloop.run(send(running.address, streams, options.seconds))

    def ceiling() -> float:
        return insert(folder, changes, options.seconds)

    def http() -> float:
        own = folder / str(uuid.uuid4())
        own.mkdir()
        with http_sqlite.service(own) as address:
            return uvloop.run(http_sqlite.post(address, batch, options.seconds))

    baselines = (http,) if options.task == "detect" else ()
    rate, limit, *others = rounds(options.rounds, end_to_end, ceiling, *baselines)
    line: dict[str, object] = {
        "bench": "ingest",
        "task": options.task,
        "devices": DEVICES,
        "batch_size": batch,
        "predictions_per_s": round(rate),
        "ceiling_per_s": round(limit),
        "ratio_to_ceiling": round(rate / limit, 3),
    }
    for baseline in others:
        line["http_sqlite_per_s"] = round(baseline)
        line["ratio_to_http_sqlite"] = round(rate / baseline, 1)
    return line


def main() -> None:
    """Print one JSON line per batch size."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--task", choices=TASKS, default="detect")
    arguments.add_argument("--streams", type=int, default=20, help="prepared per device")
    options = arguments.parse_args()
    for batch in (32, 256):
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(compare(Path(name), batch, options)), flush=True)


if __name__ == "__main__":
    main()
