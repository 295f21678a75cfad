"""Cost of those who watch: `python -m bench.console`.

First each panel of the console is read a few times, from a database of 14 days that nobody writes:
CPU time of the ingest service and the console together, and the time to the answer. Then eight
devices send as fast as the service accepts. Rounds of three alternate: nobody watches; three tabs
of the console are open, one of them on one device; one caller runs SQL that reads the whole log,
one query after another. The ratios are medians over the rounds.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import psutil
import uvloop
from sightline.ingest.v1 import reads_pb2
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from bench._grown import grow
from bench._tabs import Tab, other_panels, panels, read
from bench.ingest import DEVICES, STREAM, payloads, send
from sightline.cli.processes import ServiceProcess

BATCH = 256
DAYS = 14.0
"""Length of the log before the first round, d."""
TABS = ("", "", "bench-3")
"""Device of each open tab; empty: the whole fleet."""
SQL = """
    SELECT found.class_name, count(*) AS detections, avg(found.confidence) AS confidence
    FROM (SELECT unnest(detections) AS found FROM predictions) GROUP BY ALL
"""


class Asker:
    """A caller that runs a query again and again on a thread."""

    def __init__(self, stub: IngestServiceStub) -> None:
        self._stub = stub
        self._ending = threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ask no more, and wait for the last answer."""
        self._ending.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._ending.is_set():
            began = time.perf_counter()
            for _ in self._stub.Query(reads_pb2.QueryRequest(sql=SQL), timeout=300):
                pass
            self.seconds.append(time.perf_counter() - began)


class Load(NamedTuple):
    """A measurement of full ingest."""

    rate: float
    """Committed predictions per second."""
    cost: float
    """CPU time of the service per prediction, us; that of the processes of queries is not in it."""


def loaded(service: ServiceProcess, streams: Sequence[Sequence[bytes]], seconds: float) -> Load:
    """Send for some seconds, and return what it came to."""
    process = psutil.Process(service.pid)
    before = process.cpu_times()
    began = time.perf_counter()
    rate = uvloop.run(send(service.address, streams, seconds))
    taken, after = time.perf_counter() - began, process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return Load(rate, 1e6 * used / (rate * taken))


def measure_panel(
    processes: Sequence[psutil.Process], console: str, path: str, calls: int
) -> dict[str, float]:
    """Return the CPU time of these processes for reading a panel, and the time to its answer."""
    read(console, path)  # what only the first call after a start does is not the panel's
    before = [process.cpu_times() for process in processes]
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        read(console, path)
        seconds.append(time.perf_counter() - began)
    used = 0.0
    for process, old in zip(processes, before, strict=True):
        new = process.cpu_times()
        used += new.user + new.system - old.user - old.system
    return {
        "cpu_ms": round(1e3 * used / calls, 1),
        "p95_ms": round(1e3 * float(np.quantile(seconds, 0.95)), 1),
    }


def measure(
    stub: IngestServiceStub, console: str, load: Callable[[], Load], rounds: int
) -> dict[str, float | int]:
    """Return the figures of some rounds."""
    alone: list[Load] = []
    live: list[Load] = []
    asked: list[Load] = []
    holes = doubles = 0
    queries: list[float] = []
    for _ in range(rounds):
        alone.append(load())
        tabs = [Tab(console, device) for device in TABS]
        live.append(load())
        for missed, twice in (tab.end() for tab in tabs):
            holes, doubles = holes + missed, doubles + twice
        asker = Asker(stub)
        asked.append(load())
        asker.end()
        queries += asker.seconds
    return {
        "predictions_per_s": round(statistics.median(load.rate for load in alone)),
        "ingest_rate_ratio_with_three_tabs": _ratio(live, alone),
        "live_holes": holes,
        "live_doubles": doubles,
        "sql_commit_rate_ratio": _ratio(asked, alone),
        "cpu_us_per_prediction": _cost(alone),
        "cpu_us_per_prediction_with_three_tabs": _cost(live),
        "cpu_us_per_prediction_with_sql": _cost(asked),
        "sql_queries": len(queries),
        "sql_p50_s": round(statistics.median(queries), 2),
    }


def _ratio(loads: Sequence[Load], alone: Sequence[Load]) -> float:
    """Return the median of the ratios of one round each, which drift of the machine hurts least."""
    pairs = zip(loads, alone, strict=True)
    return round(statistics.median(a.rate / b.rate for a, b in pairs), 3)


def _cost(loads: Sequence[Load]) -> float:
    return round(statistics.median(load.cost for load in loads), 2)


def main() -> None:
    """Print a JSON line for each panel, and one for those who watch."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000, help="before the first round")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--streams", type=int, default=20, help="prepared per device")
    arguments.add_argument("--calls", type=int, default=20, help="of each panel")
    options = arguments.parse_args()
    streams = [payloads(1 + at * STREAM, STREAM, BATCH) for at in range(options.streams)]
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "bench.duckdb"
        grow(database, options.rows, days=DAYS)
        flags = ["--listen", "127.0.0.1:0", "--log-level", "warning"]
        with (
            ServiceProcess("ingest_service", [*flags, "--database", str(database)]) as service,
            ServiceProcess("console_service", [*flags, "--ingest-target", service.address]) as page,
            grpc.insecure_channel(service.address) as channel,
        ):
            about = {"bench": "console", "devices": DEVICES, "rows": options.rows}
            processes = [psutil.Process(service.pid), psutil.Process(page.pid)]
            paths = {name: path for name, (path, _) in panels().items()} | other_panels()
            for panel, path in paths.items():
                figures = measure_panel(processes, page.address, path, options.calls)
                print(json.dumps({**about, "panel": panel, **figures}), flush=True)
            line = measure(
                IngestServiceStub(channel),
                page.address,
                lambda: loaded(service, streams, options.seconds),
                options.rounds,
            )
    print(json.dumps({**about, "batch_size": BATCH, **line}))


if __name__ == "__main__":
    main()
