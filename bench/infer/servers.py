"""The server processes that are measured, and their callers."""

import functools
import json
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.infer import clients
from bench.infer.clients import Connect
from bench.infer.figures import Closed
from bench.infer.work import THREADS
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from sightline.cli.processes import ServiceProcess

OURS, GRPC, HTTP, RAW = "sightline", "bare_grpc", "fastapi", "raw_threads"
_MIB = 1 << 20
_PLENTY = 10**9  # a limit that is checked and never reached


@dataclass(frozen=True, slots=True)
class Case:
    """A benchmark case: the model and the image that all servers get."""

    name: str
    """Name of the model."""
    repository: Path
    image: bytes

    @property
    def model(self) -> Path:
        """The file of the model."""
        (path,) = (self.repository / self.name).glob("*/model.onnx")
        return path


@dataclass(frozen=True, slots=True)
class BenchmarkServer:
    """A running server in its own process."""

    name: str
    pid: int
    address: str
    connect: Connect
    classes: Callable[[bytes], list[int]]
    """Returns the class of each object in an answer."""
    metrics_address: str | None = None

    @property
    def rss_mib(self) -> float:
        """The resident memory of the process, MiB."""
        return resident_mib(self.pid)

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of the process so far, in user space and in the kernel."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def counts(self) -> bool:
        """True if the server counts its own answers."""
        return self.metrics_address is not None

    def answered(self) -> int:
        """Return the number of `Infer` calls that the server has answered, by its own metrics.

        Raises:
            RuntimeError: the server has no such metric.
        """
        url = f"http://{self.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            return answered_calls(page.read().decode())


def answered_calls(page: str) -> int:
    """Return the number of `Infer` calls that ended with OK, by a page of Prometheus metrics.

    Raises:
        RuntimeError: the page does not count calls.
    """
    families = {family.name: family for family in text_string_to_metric_families(page)}
    if "sightline_grpc_requests" not in families:
        raise RuntimeError("the server does not count its calls as sightline_grpc_requests_total")
    return sum(
        int(sample.value)
        for sample in families["sightline_grpc_requests"].samples
        if sample.name.endswith("_total")
        and (sample.labels["method"], sample.labels["code"]) == ("Infer", "OK")
    )


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return round(psutil.Process(pid).memory_info().rss / _MIB, 1)


@contextmanager
def ours(
    case: Case, *flags: str, metadata: Callable[[], clients.Metadata] = clients.no_metadata
) -> Iterator[BenchmarkServer]:
    """Run the inference service, with extra flags."""
    every = [
        *("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-level", "warning"),
        *("--model-repository", str(case.repository), "--default-model", case.name),
        *("--intra-op-threads", str(THREADS), *flags),
    ]
    with ServiceProcess("inference_service", every) as running:
        message = clients.request(case.image)
        connect = functools.partial(clients.grpc_caller, running.address, message, metadata)
        metrics = str(running.ready["metrics_address"])
        yield BenchmarkServer(
            OURS, running.pid, running.address, connect, clients.classes_in_response, metrics
        )


@contextmanager
def ours_with_everything_on(case: Case, folder: Path) -> Iterator[BenchmarkServer]:
    """Run the service with API keys, limits, an idempotency key for each call, and metrics.

    Args:
        case: the model and the image.
        folder: folder for its files.
    """
    keys = folder / f"{uuid.uuid4()}.keys"
    text, _ = KeyFile(keys).create("bench", devices=["*"], scopes=[Scope.INFER])
    flags = [
        *("--api-keys-file", str(keys)),
        *("--idempotency-database", str(folder / f"{uuid.uuid4()}.sqlite")),
        *("--rate-limit-per-second", str(_PLENTY), "--rate-limit-burst", str(_PLENTY)),
        *("--rate-limit-bytes-per-second", str(_PLENTY)),
    ]

    def metadata() -> clients.Metadata:
        return (("authorization", f"Bearer {text}"), ("idempotency-key", str(uuid.uuid4())))

    with ours(case, *flags, metadata=metadata) as server:
        yield server


@contextmanager
def bare_grpc(case: Case) -> Iterator[BenchmarkServer]:
    """Run the bare grpc.aio server."""
    with ServiceProcess("bench.infer.bare_grpc", ["--model", str(case.model)]) as running:
        message = clients.request(case.image)
        connect = functools.partial(clients.grpc_caller, running.address, message)
        yield BenchmarkServer(
            GRPC, running.pid, running.address, connect, clients.classes_in_response
        )


@contextmanager
def bare_http(case: Case) -> Iterator[BenchmarkServer]:
    """Run the FastAPI endpoint."""
    with ServiceProcess("bench.infer.bare_http", ["--model", str(case.model)]) as running:
        connect = functools.partial(clients.http_caller, running.address, case.image)
        yield BenchmarkServer(HTTP, running.pid, running.address, connect, clients.classes_in_json)


class RawThreads:
    """Two threads that share a session, in their own process, which works on demand."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read()

    @property
    def rss_mib(self) -> float:
        """The resident memory of the process, MiB."""
        return resident_mib(self._process.pid)

    def work(self, seconds: float) -> Closed:
        """Work for this many seconds and return the figures.

        Raises:
            RuntimeError: the process ended instead.
        """
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return Closed(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the raw threads ended with exit code {self._process.wait()}")
        figures: dict[str, Any] = json.loads(line)
        return figures


@contextmanager
def raw_threads(case: Case, folder: Path) -> Iterator[RawThreads]:
    """Start the process of the two threads, which waits for work."""
    image = folder / f"{uuid.uuid4()}.picture"
    image.write_bytes(case.image)
    flags = ["--model", str(case.model), "--picture", str(image)]
    with _program("bench.infer.raw_threads", flags) as process:
        yield RawThreads(process)


@contextmanager
def _program(module: str, flags: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", module, *flags]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
