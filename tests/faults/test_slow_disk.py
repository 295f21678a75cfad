"""Tests that a server with a slow disk slows its clients down, and does not grow."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest, PredictionLogResponse

from ingest_service.store.protocol import SpoolKey
from sightline.cli.processes import ServiceProcess
from tests.unit.edge.samples import eventually
from tests.unit.ingest_service.samples import header, prediction, request, spool

DEVICES = 8
MESSAGES = 400
BATCH = 100
INFLIGHT = 4 << 20
ON_THEIR_WAY = 4 * (8 << 20)
"""Memory for messages in reception: four of the largest messages, bytes."""
WINDOW = 512 << 10
"""Maximum that gRPC itself buffers of one connection, in both processes together, bytes."""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Return the file whose presence blocks the server's disk."""
    return tmp_path / "gate"


@pytest.fixture
def server(tmp_path: Path, gate: Path) -> Iterator[ServiceProcess]:
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is among what a machine must have"
    shim = tmp_path / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    flags = ["--listen", "127.0.0.1:0", "--database", str(tmp_path / "slow.duckdb")]
    with ServiceProcess(
        "ingest_service",
        [*flags, "--max-inflight-bytes", str(INFLIGHT), "--log-level", "warning"],
        env={**os.environ, "LD_PRELOAD": str(shim), "SLOW_DISK": str(gate)},
    ) as running:
        yield running


class Device:
    """A device that streams large predictions, and counts the messages that gRPC accepts."""

    def __init__(self, of: SpoolKey, payloads: Sequence[bytes]) -> None:
        self.spool = of
        self.payloads = payloads
        self.taken = 0

    def messages(self) -> Iterator[bytes]:
        yield request(head=header(self.spool)).SerializeToString()
        for payload in self.payloads:
            yield payload
            self.taken += len(payload)

    def log(self, address: str) -> PredictionLogResponse:
        with grpc.insecure_channel(address) as channel:
            call = channel.stream_unary(
                "/sightline.ingest.v1.IngestService/PredictionLog",
                request_serializer=None,
                response_deserializer=PredictionLogResponse.FromString,
            )
            answer: PredictionLogResponse = call(self.messages(), timeout=120)
            return answer


def messages() -> list[bytes]:
    """Return the messages that each device logs."""
    every = [
        prediction(number, labels={"note": "x" * 250}) for number in range(1, MESSAGES * BATCH + 1)
    ]
    return [
        PredictionLogRequest(predictions=every[at : at + BATCH]).SerializeToString()
        for at in range(0, len(every), BATCH)
    ]


def test_a_slow_disk_slows_the_clients_and_does_not_grow_the_server(
    server: ServiceProcess, gate: Path
) -> None:
    payloads = messages()
    devices = [Device(spool(number), payloads) for number in range(1, DEVICES + 1)]
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    gate.touch()
    with ThreadPoolExecutor(DEVICES) as pool:
        answers = [pool.submit(device.log, server.address) for device in devices]
        try:
            stalled = _until_they_stall(devices)
            grown = process.memory_info().rss - before
            with grpc.insecure_channel(server.address) as channel:
                check = HealthStub(channel).Check  # type: ignore[attr-defined] # missing from the published types
                health = check(HealthCheckRequest(), timeout=20)
        finally:
            gate.unlink()
        committed = sum(answer.result().accepted for answer in answers)
    assert health.status == HealthCheckResponse.SERVING
    bound = INFLIGHT + ON_THEIR_WAY + DEVICES * WINDOW
    assert stalled < bound, "what the clients could send must be bounded"
    assert stalled < DEVICES * sum(map(len, payloads)) / 3, "or the test proves nothing"
    assert grown < 64 << 20, "that, what it becomes decoded, and DuckDB's own buffers"
    assert committed == DEVICES * MESSAGES * BATCH


def _until_they_stall(devices: list[Device]) -> int:
    """Wait until gRPC accepts no more from any device; return the accepted bytes."""
    seen = [0, -1]

    def still() -> bool:
        seen.append(sum(device.taken for device in devices))
        threading.Event().wait(0.3)
        return len(seen) > 6 and seen[-1] == seen[-4] > 0

    assert eventually(still, 60)
    return seen[-1]
