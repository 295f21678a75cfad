"""Latency of statistics and pages while predictions stream in: `python -m bench.reads`.

A database grows to ten million rows; then eight devices send as fast as the service accepts, and
one client requests statistics, pages, devices and the ledger in turn.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import numpy as np
import uvloop
from google.protobuf.message import Message
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, reads_pb2
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub

from bench._grown import grow
from bench.ingest import DEVICES, STREAM, payloads, send
from sightline.cli.processes import ServiceProcess

BATCH = 256
Filter = ingest_pb2.PredictionFilter
PAGES = {
    "all": Filter(),
    "device": Filter(device_ids=["bench-3"]),
    "class": Filter(class_names=["car"]),
    "no_such_device": Filter(device_ids=["nobody"]),
    "no_such_class": Filter(class_names=["nothing"]),
}


def ask_stats(stub: IngestServiceStub, selection: Filter) -> Callable[[], Message]:
    """Return a call for statistics."""
    return lambda: stub.GetStats(ingest_service_pb2.GetStatsRequest(filter=selection))


def ask_page(stub: IngestServiceStub, selection: Filter, token: str = "") -> Callable[[], Message]:
    """Return a call for a page of 100."""
    return lambda: stub.ListPredictions(
        ingest_service_pb2.ListPredictionsRequest(filter=selection, page_token=token)
    )


def read_calls(stub: IngestServiceStub) -> dict[str, Callable[[], Message]]:
    """Return the read calls by name."""
    later = stub.ListPredictions(ingest_service_pb2.ListPredictionsRequest()).next_page_token
    return {
        "stats_all": ask_stats(stub, Filter()),
        "stats_device": ask_stats(stub, Filter(device_ids=["bench-3"])),
        **{f"list_{name}": ask_page(stub, selection) for name, selection in PAGES.items()},
        "list_later": ask_page(stub, Filter(), later),
        "records_devices": lambda: stub.ListDevices(reads_pb2.ListDevicesRequest()),
        "records_ledger": lambda: stub.GetLedger(reads_pb2.GetLedgerRequest()),
    }


def measure(
    address: str, streams: Sequence[Sequence[bytes]], seconds: float
) -> tuple[float, dict[str, list[float]]]:
    """Return predictions per second, and the durations of each read call in seconds, by name."""
    rates: list[float] = []
    sender = threading.Thread(
        target=lambda: rates.append(uvloop.run(send(address, streams, seconds)))
    )
    taken: dict[str, list[float]] = {}
    with grpc.insecure_channel(address) as channel:
        calls = read_calls(IngestServiceStub(channel))
        sender.start()
        time.sleep(1.0)  # let the service reach full speed
        asking = True
        while asking:
            asking = sender.is_alive()
            for name, ask in calls.items():
                began = time.perf_counter()
                ask()
                taken.setdefault(name, []).append(time.perf_counter() - began)
        sender.join()
    return rates[0], taken


def p95_ms(times: Sequence[float]) -> float:
    """Return the 95th percentile in milliseconds."""
    return round(1000 * float(np.quantile(times, 0.95)), 1)


def main() -> None:
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--seconds", type=float, default=30.0, help="of full ingest")
    arguments.add_argument("--streams", type=int, default=100, help="prepared per device")
    arguments.add_argument("--database", type=Path, help="existing database to use and keep")
    options = arguments.parse_args()
    streams = [payloads(1 + at * STREAM, STREAM, BATCH) for at in range(options.streams)]
    with tempfile.TemporaryDirectory() as name:
        database = options.database or Path(name) / "bench.duckdb"
        grow(database, options.rows)
        flags = ["--listen", "127.0.0.1:0", "--database", str(database), "--log-level", "warning"]
        with ServiceProcess("ingest_service", flags) as service:
            rate, taken = measure(service.address, streams, options.seconds)
    line = {"bench": "reads", "devices": DEVICES, "rows": options.rows, "batch_size": BATCH}
    line["predictions_per_s"] = round(rate)
    for kind in ("stats", "list", "records"):
        every = [t for n, times in taken.items() if n.startswith(kind) for t in times]
        line[f"{kind}_p95_ms"] = p95_ms(every)
        line[f"{kind}_max_ms"] = round(1000 * max(every))
    line["questions"] = sum(map(len, taken.values()))
    line |= {f"{n}_p95_ms": p95_ms(times) for n, times in taken.items()}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
