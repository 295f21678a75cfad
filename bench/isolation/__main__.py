"""Latency of a well-behaved caller beside a flood of another: `python -m bench.isolation`.

Each service runs as a real process with API keys. A caller makes a few small calls a second, alone
and then while a flood with another key runs from another process. One JSON line for each service
and flood:

- `in_time_ratio`: share of the caller's calls answered within a second; `in_time_ratio_alone`.
- `p99_ms`, `p99_ms_alone`: latency; a call that failed took its whole deadline.
- `peak_rss_mib`, `memory_ratio`: memory of the process beyond its idle size, over the bound that
  its settings state: `max_bytes_in_flight` of inference, `max_inflight_bytes` of ingest. A flood
  that is stored may take what DuckDB keeps until its next checkpoint as well, as any load does.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.infer.figures import Call
from bench.isolation import figures, well_behaved
from bench.isolation.flood import FLOODS
from bench.isolation.target import INFERENCE, INGEST, SERVICES
from inference_service.settings import InferenceSettings
from ingest_service.settings import IngestSettings
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.settings import load
from sightline.cli.processes import ServiceProcess

_MIB = 1 << 20
_SAMPLE_SECONDS = 0.01
_FLOOD_LEADS_SECONDS = 1.0
"""Duration of a flood before the caller's calls count."""
_START_SECONDS = 30.0
_CHECKPOINT_MIB = 128
"""`checkpoint_threshold` of the ingest service's store."""
_STORED = {"long_deadlines", "large_messages"}
"""Floods of predictions that are committed."""
REPOSITORY = Path(__file__).parents[2] / "models" / "repository"


@dataclass(frozen=True, slots=True)
class Server:
    """A running service, and the files with the keys of its callers."""

    service: str
    running: ServiceProcess
    key: str
    flood_key_file: Path

    @property
    def rss_mib(self) -> float:
        """The resident memory now, MiB."""
        return float(psutil.Process(self.running.pid).memory_info().rss / _MIB)


def bound_mib(service: str, flood: str) -> float:
    """Return the memory that the service may hold for its callers by its settings, MiB."""
    if service == INGEST:
        bound = load(IngestSettings, [], prog="bench").max_inflight_bytes / _MIB
        return bound + (_CHECKPOINT_MIB if flood in _STORED else 0)
    return load(InferenceSettings, [], prog="bench").bytes_in_flight / _MIB


def _flags(service: str, folder: Path) -> list[str]:
    if service == INGEST:
        return ["--database", str(folder / "bench.duckdb")]
    return ["--model-repository", str(REPOSITORY), "--default-model", "plates"]


@contextlib.contextmanager
def served(service: str, folder: Path) -> Iterator[Server]:
    """Run a service with one key for the caller and one for the flood."""
    keys = KeyFile(folder / "keys.db")
    scopes = [Scope.LOG, Scope.READ, Scope.INFER]
    key, _ = keys.create("well-behaved", devices=["*"], scopes=scopes)
    flood_key_file = folder / "flood.key"
    flood_key_file.write_text(keys.create("flood", devices=["*"], scopes=scopes)[0])
    flags = ["--listen", "127.0.0.1:0", "--api-keys-file", str(folder / "keys.db")]
    with (
        (folder / "log").open("w") as log,
        ServiceProcess(
            f"{service}_service", [*flags, *_flags(service, folder)], stderr=log
        ) as running,
    ):
        yield Server(service, running, key, flood_key_file)


@contextlib.asynccontextmanager
async def flooded(server: Server, flood: str, seconds: float) -> AsyncIterator[None]:
    """Flood the server from another process within the block, for at most this many seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.isolation.flood", server.service, flood),
        *(server.running.address, str(server.flood_key_file), "--seconds", str(seconds)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            await process.stdout.readline()  # the flood has begun
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Peak:
    """The largest resident memory of a process, sampled in the background."""

    def __init__(self, server: Server) -> None:
        self.mib = server.rss_mib
        self._server = server

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            self.mib = max(self.mib, self._server.rss_mib)
            await asyncio.sleep(_SAMPLE_SECONDS)


async def measure(server: Server, flood: str, seconds: float) -> dict[str, object]:
    """Return the figures of one flood."""
    async with well_behaved.caller(server.service, server.running.address, server.key) as ask:
        await well_behaved.calls(ask, 1.0)  # connect, warm up
        alone = await well_behaved.calls(ask, seconds)
        idle, peak = server.rss_mib, Peak(server)
        watching = asyncio.create_task(peak.watch())
        try:
            async with flooded(server, flood, seconds + _FLOOD_LEADS_SECONDS):
                await asyncio.sleep(_FLOOD_LEADS_SECONDS)
                beside = await well_behaved.calls(ask, seconds)
        finally:
            watching.cancel()
    return row(server.service, flood, alone, beside, (idle, peak.mib))


def row(
    service: str,
    flood: str,
    alone: list[Call],
    beside: list[Call],
    rss_mib: tuple[float, float],
) -> dict[str, object]:
    """Return the line of one flood; `rss_mib`: idle and peak."""
    bound, deadline = bound_mib(service, flood), well_behaved.DEADLINE_SECONDS
    return {
        "bench": "isolation",
        "service": service,
        "flood": flood,
        "calls": len(beside),
        "in_time_ratio": figures.in_time_ratio(beside),
        "in_time_ratio_alone": figures.in_time_ratio(alone),
        "p99_ms": figures.p99_ms(beside, deadline),
        "p99_ms_alone": figures.p99_ms(alone, deadline),
        "codes": figures.codes(beside),
        "idle_rss_mib": round(rss_mib[0], 1),
        "peak_rss_mib": round(rss_mib[1], 1),
        "bound_mib": bound,
        "memory_ratio": figures.memory_ratio(*rss_mib, bound),
    }


def main() -> None:
    """Print one JSON line per service and flood."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=10.0, help="of one measurement")
    arguments.add_argument("--service", choices=SERVICES, help="only this one")
    arguments.add_argument(
        "--flood", choices=sorted({*FLOODS[INGEST], *FLOODS[INFERENCE]}), help="only this one"
    )
    options = arguments.parse_args()
    for service in (options.service,) if options.service else SERVICES:
        for flood in FLOODS[service]:
            if options.flood in (None, flood):
                with tempfile.TemporaryDirectory() as name, served(service, Path(name)) as server:
                    line = asyncio.run(measure(server, flood, options.seconds))
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
