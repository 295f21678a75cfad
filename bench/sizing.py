"""Resources of an ingest service for a fleet: `python -m bench.sizing`.

Devices, each with a connection of its own, send what they have predicted once a second, as nodes do
by default, to an ingest service in a process of its own. A cell of the matrix is a number of
devices and a rate, with a service and a database of its own. Then eight devices send as fast as
they can, as after an outage; the file of that service gives the bytes per prediction.

Predictions have three detections with random boxes and confidences, which do not compress as those
of `bench.ingest` do. The figures of a cell are of the service's process alone:

- `predictions_per_s`: committed predictions. Below devices times rate, the service or the
  devices of this program could not keep up;
- `commits_per_s`: transactions;
- `cpu_cores`: CPU time over elapsed time. `cpu_s_per_million`: the same by committed prediction;
- `rss_mib`: resident memory at the end of the cell;
- `bytes_per_million`: size of the database file that the service leaves when it stops, for a
  million predictions.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
import psutil
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from sightline.ingest.v1 import ingest_service_pb2

from bench.ingest import METHOD, STREAM, header, predictions, send
from sightline.cli.processes import ServiceProcess

BATCH = 32
"""Predictions in a message of a node, at most."""
PERIOD = 1.0
"""Time after which a node sends what it has, s."""
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time, commits and predictions of a service up to a moment."""

    at: float
    cpu_seconds: float
    commits: float
    predictions: float

    @classmethod
    def of(cls, service: ServiceProcess) -> Self:
        """Return the usage of a service whose metrics are served."""
        times = psutil.Process(service.process.pid).cpu_times()
        url = f"http://{service.ready['metrics_address']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        counts = {
            sample.name.removeprefix("sightline_ingest_"): sample.value
            for family in families
            for sample in family.samples
        }
        return cls(
            time.monotonic(),
            times.user + times.system,
            counts["commit_seconds_count"],
            counts["predictions_total"],
        )


def varied(first: int, count: int) -> list[bytes]:
    """Return messages with random boxes and confidences, the same for each call."""
    source, messages = random.Random(first), []
    every = predictions(first, count)
    for start in range(0, count, BATCH):
        batch = every[start : start + BATCH]
        for prediction in batch:
            for detection in prediction.detections:
                detection.confidence = source.random()
                x, y = source.uniform(0, 900), source.uniform(0, 500)
                detection.box.x_min, detection.box.x_max = x, x + source.uniform(1, 900)
                detection.box.y_min, detection.box.y_max = y, y + source.uniform(1, 500)
        request = ingest_service_pb2.PredictionLogRequest(predictions=batch)
        messages.append(request.SerializeToString())
    return messages


class Fleet:
    """Devices that send what they have predicted once a period, each at a moment of its own.

    Args:
        target: the service's address.
        periods: the messages of each period, the same for every device.
    """

    def __init__(self, target: str, periods: Sequence[Sequence[bytes]]) -> None:
        self._target = target
        self._periods = periods
        self._waiting = 0
        self._all_have_sent = asyncio.Event()

    async def run(self, devices: int) -> None:
        """Send for all periods."""
        self._waiting = devices
        await asyncio.gather(*(self._device(number, devices) for number in range(devices)))

    async def is_under_way(self) -> None:
        """Return when each device has been answered once."""
        await self._all_have_sent.wait()

    async def _device(self, number: int, devices: int) -> None:
        spool, began = str(uuid.uuid4()), time.monotonic() + PERIOD * number / devices
        async with grpc.aio.insecure_channel(self._target, _OWN_CONNECTION) as channel:
            log = channel.stream_unary(
                METHOD,
                request_serializer=None,
                response_deserializer=ingest_service_pb2.PredictionLogResponse.FromString,
            )
            for period, messages in enumerate(self._periods):
                await asyncio.sleep(max(began + PERIOD * period - time.monotonic(), 0))
                await log(iter([header(f"bench-{number}", spool), *messages]))
                self._waiting -= period == 0
                if not self._waiting:
                    self._all_have_sent.set()


def service(database: Path, *more: str) -> ServiceProcess:
    """Return an ingest service with a new database, whose metrics are served."""
    flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    flags += ["--database", str(database), "--log-level", "warning", *more]
    return ServiceProcess("ingest_service", flags)


def cell(database: Path, devices: int, rate: int, seconds: float, *flags: str) -> dict[str, float]:
    """Return the figures of one number of devices at one rate.

    Args:
        database: path of the service's new database.
        devices: number of devices.
        rate: predictions of each device per second.
        seconds: duration of the measurement, after all devices have connected.
        flags: of the service.
    """
    count = int(seconds / PERIOD) + 3
    periods = [varied(1 + at * rate, rate) for at in range(count)]

    async def measure(running: ServiceProcess) -> dict[str, float]:
        fleet = Fleet(running.address, periods)
        sending = asyncio.create_task(fleet.run(devices))
        await fleet.is_under_way()
        before = await asyncio.to_thread(Usage.of, running)
        await asyncio.sleep(seconds)
        after = await asyncio.to_thread(Usage.of, running)
        while after.predictions == before.predictions and not sending.done():
            after = await asyncio.to_thread(Usage.of, running)
        found = figures(before, after, running)
        await sending
        return found

    with service(database, *flags) as running:
        return {"devices": devices, "rate": rate, **uvloop.run(measure(running))}


def figures(before: Usage, after: Usage, running: ServiceProcess) -> dict[str, float]:
    """Return the figures between two moments."""
    elapsed, cpu = after.at - before.at, after.cpu_seconds - before.cpu_seconds
    committed = max(after.predictions - before.predictions, 1)
    resident = psutil.Process(running.process.pid).memory_info().rss
    return {
        "predictions_per_s": round(committed / elapsed),
        "commits_per_s": round((after.commits - before.commits) / elapsed, 1),
        "cpu_cores": round(cpu / elapsed, 3),
        "cpu_s_per_million": round(cpu / committed * 1e6, 1),
        "rss_mib": round(resident / _MIB),
    }


def full_rate(database: Path, seconds: float) -> dict[str, float]:
    """Return the figures of eight devices that send as fast as they can, and of their database."""
    streams = [varied(1, STREAM)]
    with service(database) as running:
        before = Usage.of(running)
        uvloop.run(send(running.address, streams, seconds))
        after = Usage.of(running)
        found = figures(before, after, running)
    size = database.stat().st_size / (after.predictions - before.predictions)
    return {**found, "bytes_per_million": round(size * 1e6)}


def main() -> None:
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--devices", type=int, nargs="+", default=[10, 100, 1000])
    arguments.add_argument("--rates", type=int, nargs="+", default=[1, 10], help="per device")
    arguments.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    arguments.add_argument("--flags", nargs="*", default=[], help="of the service, without --")
    options = arguments.parse_args()
    flags = [f"--{flag}" for flag in options.flags]
    with tempfile.TemporaryDirectory() as name:
        cells = [
            cell(Path(name, f"{devices}-{rate}.duckdb"), devices, rate, options.seconds, *flags)
            for devices in options.devices
            for rate in options.rates
        ]
        backlog = full_rate(Path(name, "full-rate.duckdb"), options.seconds)
    print(json.dumps({"bench": "sizing", "cells": cells, "full_rate": backlog}))


if __name__ == "__main__":
    main()
