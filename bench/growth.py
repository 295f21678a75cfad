"""Commit rates of a large database and a small one: `python -m bench.growth`.

Two databases are filled through the store's own path in this process. Then eight devices send to a
service on each in turn, end to end as in `bench.ingest`.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench._grown import grow
from bench.ingest import DEVICES, STREAM, payloads, rounds, send
from sightline.cli.processes import ServiceProcess

BATCH = 256


def rate(database: Path, streams: Sequence[Sequence[bytes]], seconds: float) -> float:
    """Return predictions per second that a service on this database commits."""
    flags = ["--listen", "127.0.0.1:0", "--database", str(database), "--log-level", "warning"]
    with ServiceProcess("ingest_service", flags) as service:
        return uvloop.run(send(service.address, streams, seconds))


def main() -> None:
    """Print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=50_000_000, help="of the large database")
    arguments.add_argument("--small-rows", type=int, default=1_000_000, help="of the other")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--streams", type=int, default=60, help="prepared per device")
    arguments.add_argument(
        "--folder", type=Path, help="folder of the databases to use, grow and keep"
    )
    options = arguments.parse_args()
    streams = [payloads(1 + at * STREAM, STREAM, BATCH) for at in range(options.streams)]
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        small, large = folder / "small.duckdb", folder / "large.duckdb"
        grow(small, options.small_rows)
        grow(large, options.rows)
        size = large.stat().st_size
        of_small, of_large = rounds(
            options.rounds,
            lambda: rate(small, streams, options.seconds),
            lambda: rate(large, streams, options.seconds),
        )
    small_label, large_label = (f"{rows / 1e6:g}m" for rows in (options.small_rows, options.rows))
    line = {
        "bench": "growth",
        "devices": DEVICES,
        "batch_size": BATCH,
        f"rate_{small_label}_per_s": round(of_small),
        f"rate_{large_label}_per_s": round(of_large),
        f"ratio_{large_label}_to_{small_label}": round(of_large / of_small, 3),
        "bytes_per_row": round(size / options.rows, 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
