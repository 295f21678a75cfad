"""The cost of logging on a device, from `log()` to committed: `python -m bench.edge_cost`.

The edge node and the ingest service run in separate processes. CPU is the node's alone, by
`getrusage`, while it logs bursts of a hundred predictions with three detections each, a hundred
times a second, without the making of the records. With gzip the same is measured again, and for
`segment` (a mask of one polygon with 40 points per detection) and `pose` (17 keypoints). The bytes
on the wire are counted by a relay. Memory is the node's resident set while a backlog builds up with
the service down, and while it then drains.
"""

import argparse
import asyncio
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import psutil

from bench.log_call import prediction
from edge.options import Compression
from sightline import Detection, Keypoint, LogOptions, Mask, Prediction, PredictionLogger
from sightline.cli.processes import ServiceProcess

BURST, PAUSE_SECONDS = 100, 0.01
MIB = 1 << 20
DONE = "done"


def cpu_seconds() -> float:
    """Return the CPU time of this process so far, in user space and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def varied_records(task: str = "detect") -> list[Prediction]:
    """Return records that differ as a camera's do, so that gzip does not compress them too well."""
    chance = random.Random(1)
    records = [prediction(number, chance.uniform(0, 900)) for number in range(1000)]
    if task == "detect":
        return records
    return [
        replace(record, detections=[_shaped(task, one, chance) for one in record.detections])
        for record in records
    ]


def _shaped(task: str, detection: Detection, chance: random.Random) -> Detection:
    """Return a detection with a mask or keypoints."""
    if task == "segment":
        outline = [(chance.uniform(0, 900), chance.uniform(0, 900)) for _ in range(40)]
        return replace(detection, mask=Mask(polygons=[outline]))
    points = [Keypoint(chance.uniform(0, 900), chance.uniform(0, 900), 0.5) for _ in range(17)]
    return replace(detection, keypoints=points)


def node_cpu(
    target: str, folder: str, count: int, compression: Compression, task: str
) -> dict[str, float]:
    """Log at a steady rate and return the CPU microseconds and wall seconds used."""
    records = varied_records(task)
    options = LogOptions(compression=compression)
    with PredictionLogger(target, device_id="bench", spool_dir=folder, options=options) as log:
        log.log(records[0], wait="committed", timeout=60)  # connected, everything imported
        began, used = time.perf_counter(), cpu_seconds()
        for burst in range(count // BURST):
            for number in range(BURST):
                log(records[(burst * BURST + number) % len(records)])
            time.sleep(max(0.0, began + (burst + 1) * PAUSE_SECONDS - time.perf_counter()))
        committed = log.flush(600, until="committed")
        used, elapsed = cpu_seconds() - used, time.perf_counter() - began
        if not committed or log.stats().dropped:
            raise RuntimeError(f"not everything was committed: {log.stats()}")
    return {"cpu_us": used * 1e6, "seconds": elapsed}


def node_backlog(target: str, folder: str, count: int) -> None:
    """Fill the spool without a server, print DONE, and again when a server has committed all."""
    records = varied_records()
    log = PredictionLogger(target, device_id="bench", spool_dir=folder, on_full="block")
    with log:
        for record in itertools.islice(itertools.cycle(records), count):
            log(record)
        if not log.flush(600):
            raise RuntimeError(f"not everything was spooled: {log.stats()}")
        print(DONE, flush=True)
        if not log.flush(3600, until="committed") or log.stats().dropped:
            raise RuntimeError(f"not everything was committed: {log.stats()}")
        print(DONE, flush=True)


@contextmanager
def service(folder: Path, listen: str = "127.0.0.1:0") -> Iterator[ServiceProcess]:
    """Run an ingest service with a new database."""
    flags = ["--listen", listen, "--database", str(folder / f"{uuid.uuid4()}.duckdb")]
    with ServiceProcess("ingest_service", [*flags, "--log-level", "warning"]) as running:
        yield running


@contextmanager
def node(arguments: Sequence[object]) -> Iterator["subprocess.Popen[str]"]:
    """Run this program as an edge node."""
    command = [sys.executable, "-m", "bench.edge_cost", "--node", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a node prints.

    Raises:
        RuntimeError: the node ended instead.
    """
    out: IO[str] | None = process.stdout
    line = out.readline() if out else ""
    if not line:
        raise RuntimeError(f"the node ended with exit code {process.wait()}")
    return line.strip()


class CountingRelay:
    """A relay to a service that counts the bytes sent to it."""

    def __init__(self, target: str) -> None:
        self.sent = 0
        self._host, _, self._port = target.rpartition(":")

    @contextmanager
    def running(self) -> Iterator[str]:
        """Run the relay and yield its address."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(starting, loop).result()
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, onward = await asyncio.open_connection(self._host, int(self._port))
        await asyncio.gather(self._pass(reader, onward, 1), self._pass(back, writer, 0))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, weight: int
    ) -> None:
        while chunk := await reader.read(1 << 16):
            self.sent += weight * len(chunk)
            writer.write(chunk)
            await writer.drain()
        writer.close()


def cpu_us(
    target: str, folder: Path, count: int, compression: Compression, task: str = "detect"
) -> tuple[float, float]:
    """Return CPU microseconds and wall seconds per prediction."""
    arguments = ["cpu", target, folder / str(uuid.uuid4()), count, compression, task]
    with node(arguments) as process:
        figures = json.loads(line_of(process))
    return figures["cpu_us"] / count, figures["seconds"] / count


def wire_bytes(
    target: str, folder: Path, count: int, compression: Compression, task: str = "detect"
) -> float:
    """Return the bytes per prediction on the wire."""
    relay = CountingRelay(target)
    with relay.running() as address:
        cpu_us(address, folder, count, compression, task)
    return relay.sent / count


def resident_mib(process: psutil.Process) -> float:
    """Return the resident memory of a process in MiB."""
    return float(process.memory_info().rss / MIB)


def peak_resident(process: "subprocess.Popen[str]") -> float:
    """Return the peak memory of a node until it prints its next line, in MiB."""
    watched, peak, done = psutil.Process(process.pid), 0.0, threading.Event()
    lines: list[str] = []

    def listen() -> None:
        lines.append((process.stdout.readline() if process.stdout else "").strip())
        done.set()

    threading.Thread(target=listen, daemon=True).start()
    while not done.wait(0.05):
        peak = max(peak, resident_mib(watched))
    if lines != [DONE]:
        raise RuntimeError(f"the node ended with exit code {process.wait()}")
    return max(peak, resident_mib(watched))


def backlog(folder: Path, count: int) -> dict[str, float]:
    """Return the node's memory before, during and after a backlog, in MiB."""
    with service(folder) as running:
        address = running.address  # nothing listens there while the backlog builds up
    with node(["backlog", address, folder / "backlog", count]) as process:
        building = peak_resident(process)
        built = resident_mib(psutil.Process(process.pid))
        with service(folder, address):
            began = time.perf_counter()
            draining = peak_resident(process)
            elapsed = time.perf_counter() - began
    return {
        "rss_build_peak_mib": round(building, 1),
        "rss_before_drain_mib": round(built, 1),
        "rss_growth_mib": round(max(0.0, draining - built), 1),
        "drained_per_s": round(count / elapsed),
    }


def measure(folder: Path, predictions: int, rounds: int, waiting: int) -> dict[str, object]:
    """Return the line of figures."""
    kinds: tuple[Compression, ...] = ("none", "gzip")
    shaped: dict[str, float] = {}
    # One service for all: a node's CPU time and bytes are its own.
    with service(folder) as running:
        target = running.address
        taken = [
            [cpu_us(target, folder, predictions, kind) for kind in kinds] for _ in range(rounds)
        ]
        sizes = [wire_bytes(target, folder, predictions // 5, kind) for kind in kinds]
        for task in ("segment", "pose"):
            count = predictions // 5
            rows = [cpu_us(target, folder, count, "none", task)[0] for _ in range(rounds)]
            shaped[f"{task}_cpu_us_per_prediction"] = round(statistics.median(rows), 1)
            size = wire_bytes(target, folder, count, "none", task)
            shaped[f"{task}_wire_bytes_per_prediction"] = round(size, 1)
    columns = zip(*taken, strict=True)
    plain, zipped = (statistics.median(cpu for cpu, _ in column) for column in columns)
    return {
        "bench": "edge_cost",
        "predictions": predictions,
        "predictions_per_s": round(
            1 / statistics.median(round_figures[0][1] for round_figures in taken)
        ),
        "cpu_us_per_prediction": round(plain, 1),
        "gzip_cpu_us_per_prediction": round(zipped, 1),
        "wire_bytes_per_prediction": round(sizes[0], 1),
        "gzip_bytes_ratio": round(sizes[1] / sizes[0], 3),
        **shaped,
        "backlog": waiting,
        **backlog(folder, waiting),
    }


def main() -> None:
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--predictions", type=int, default=100_000, help="in one measurement")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument(
        "--backlog", type=int, default=1_000_000, help="predictions in the backlog"
    )
    arguments.add_argument("--node", nargs="+", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    match options.node:
        case ["cpu", target, folder, count, compression, task]:
            print(json.dumps(node_cpu(target, folder, int(count), compression, task)), flush=True)
        case ["backlog", target, folder, count]:
            node_backlog(target, folder, int(count))
        case _:
            with tempfile.TemporaryDirectory() as name:
                line = measure(Path(name), options.predictions, options.rounds, options.backlog)
                print(json.dumps(line))


if __name__ == "__main__":
    main()
