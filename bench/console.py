"""Cost of those who watch: `python -m bench.console`.

Eight devices send as fast as the service accepts, into a database that has grown before. Rounds of
three alternate: nobody watches; three callers follow the log; one caller runs SQL that reads the
whole log, one query after another. The ratios are medians over the rounds.
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
import psutil
import uvloop
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, reads_pb2
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from bench._grown import grow
from bench.ingest import DEVICES, STREAM, payloads, send
from sightline.cli.processes import ServiceProcess

BATCH = 256
WATCHES = (
    ingest_pb2.PredictionFilter(),
    ingest_pb2.PredictionFilter(device_ids=["bench-3"]),
    ingest_pb2.PredictionFilter(defect_detected=True),
)
SQL = """
    SELECT found.class_name, count(*) AS detections, avg(found.confidence) AS confidence
    FROM (SELECT unnest(detections) AS found FROM predictions) GROUP BY ALL
"""


class Follower:
    """A caller that follows the log on a thread, and accounts for what it is told."""

    def __init__(self, stub: IngestServiceStub, filter_: ingest_pb2.PredictionFilter) -> None:
        self._stub = stub
        self._filter = filter_
        self._before = self._stored()
        request = reads_pb2.WatchPredictionsRequest(filter=filter_)
        self._call = stub.WatchPredictions(request)
        self._answers = iter(self._call)
        next(self._answers)  # from here on
        self.rows: list[tuple[str, str, int]] = []
        self.left_out = 0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def end(self) -> tuple[int, int]:
        """Return the predictions that were not accounted for, and those that came twice."""
        expected = self._stored() - self._before
        deadline = time.monotonic() + 30
        while len(self.rows) + self.left_out < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        self._call.cancel()  # type: ignore[no-untyped-call]
        self._thread.join()
        doubles = len(self.rows) - len(set(self.rows))
        return max(expected - len(self.rows) - self.left_out, 0), doubles

    def _follow(self) -> None:
        try:
            for answer in self._answers:
                self.left_out += answer.left_out
                self.rows += [
                    (row.device_id, row.spool_id, row.prediction.sequence)
                    for row in answer.predictions
                ]
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise

    def _stored(self) -> int:
        request = ingest_service_pb2.GetStatsRequest(filter=self._filter)
        return int(self._stub.GetStats(request).total_predictions)


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


def measure(
    stub: IngestServiceStub, load: Callable[[], Load], rounds: int
) -> dict[str, float | int]:
    """Return the figures of some rounds."""
    alone: list[Load] = []
    live: list[Load] = []
    asked: list[Load] = []
    holes = doubles = 0
    queries: list[float] = []
    for _ in range(rounds):
        alone.append(load())
        followers = [Follower(stub, filter_) for filter_ in WATCHES]
        live.append(load())
        for missed, twice in (follower.end() for follower in followers):
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
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000, help="before the first round")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--streams", type=int, default=20, help="prepared per device")
    options = arguments.parse_args()
    streams = [payloads(1 + at * STREAM, STREAM, BATCH) for at in range(options.streams)]
    with tempfile.TemporaryDirectory() as name:
        database = Path(name) / "bench.duckdb"
        grow(database, options.rows)
        flags = ["--listen", "127.0.0.1:0", "--database", str(database), "--log-level", "warning"]
        with (
            ServiceProcess("ingest_service", flags) as service,
            grpc.insecure_channel(service.address) as channel,
        ):
            figures = measure(
                IngestServiceStub(channel),
                lambda: loaded(service, streams, options.seconds),
                options.rounds,
            )
    line = {"bench": "console", "devices": DEVICES, "rows": options.rows, "batch_size": BATCH}
    print(json.dumps(line | figures))


if __name__ == "__main__":
    main()
