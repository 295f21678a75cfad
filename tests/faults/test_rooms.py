"""Tests of calls that stall, stop within a message, or are reset, beside a well-behaved caller.

Item 2 of the isolation of callers: memory stays within twice the bound, the caller is
answered, and every prediction acknowledged as committed is stored exactly once.
"""

import hashlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from sightline.inference.v1 import inference_pb2, inference_service_pb2
from sightline.ingest.v1 import ingest_service_pb2

from tests.fakes.hostile import hostile, most_of
from tests.faults.campaign import Campaign
from tests.integration.inference import process as inference
from tests.integration.ingest.process import IngestProcess
from tests.unit.inference_service.tiny_onnx import colour_model, picture
from tests.unit.ingest_service.samples import header, predictions, request, spool

pytestmark = pytest.mark.timeout(600)  # generous, for a machine under other load
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
RUNS = [4, pytest.param(200, marks=SOAK)]
SEED = 20
MIB = 1 << 20
DEADLINE = 30.0
"""Maximum duration of each call of the caller on a machine under other load, s;
`bench.isolation` measures the actual durations."""
INGEST = "/sightline.ingest.v1.IngestService/"
INFERENCE = f"/{inference.SERVICE}/"
LARGEST = 8 * MIB
"""Largest message that gRPC accepts at both services, bytes."""
BOUND = 64 * MIB


def flood(address: str, methods: list[str], runs: int, chance: random.Random) -> None:
    """Start bad calls of a random kind, this many times."""
    for _ in range(runs):
        with hostile(address) as client:
            for _ in range(chance.randint(1, 3)):
                size = chance.choice([1_000, MIB, LARGEST - 1024, LARGEST - 1024])
                beginning = most_of(size, chance.choice([0.0, 0.01, 0.5, 0.99, 1.0]))
                streams = client.begin(
                    chance.choice(methods),
                    chance.randint(1, 80),
                    chance.choice([b"", beginning, beginning]),
                    connections=chance.randint(1, 3),
                )
                time.sleep(chance.uniform(0.0, 1.2))
                if chance.random() < 0.5:
                    client.reset(streams)


class Beside(NamedTuple):
    """The measurements beside the bad calls."""

    grown: int
    """Maximum growth of the process, bytes."""
    slowest: float
    """The longest turn, s."""

    def __str__(self) -> str:
        return f"grown by {self.grown / MIB:.0f} MiB, slowest turn {self.slowest:.1f} s"


def beside(pid: int, turn: Callable[[], None], trouble: Callable[[], None]) -> Beside:
    """Make the caller's turns while bad calls go on."""
    for _ in range(50):  # memory that the first calls allocate for good
        turn()
    process, slowest = psutil.Process(pid), 0.0
    before = peak = process.memory_info().rss
    with ThreadPoolExecutor(1) as other:
        making = other.submit(trouble)
        while not making.done():
            began = time.monotonic()
            turn()
            slowest = max(slowest, time.monotonic() - began)
            peak = max(peak, process.memory_info().rss)
        making.result()
    return Beside(peak - before, slowest)


@pytest.mark.parametrize("runs", RUNS)
def test_stalls_halves_and_resets_beside_a_device(
    tmp_path: Path, report: Callable[[Campaign], None], runs: int
) -> None:
    server = IngestProcess(tmp_path, "--receive-timeout-seconds", "2", "--log-level", "warning")
    server.start()
    of, logged = spool(1), 0

    def turn() -> None:
        nonlocal logged
        watermark = ingest_service_pb2.GetWatermarkRequest(
            device_id=of.device_id, spool_id=of.spool_id
        )
        assert server.stub.GetWatermark(watermark, timeout=DEADLINE).committed_through == logged
        sent = request(*predictions(logged + 1, logged + 2), head=header(of))
        logged += 2
        answer = server.stub.PredictionLog(iter([sent]), timeout=DEADLINE)
        assert answer.committed_through == logged

    methods = [INGEST + name for name in ("PredictionLog", "GetWatermark", "GetStats")]
    try:
        seen = beside(
            server.pid,
            turn,
            lambda: flood(server.address, methods, runs, random.Random(SEED)),
        )
        server.stop()
    finally:
        server.kill()
    server.assert_exactly_once({of: logged})
    note = f"{logged} predictions, {seen}"
    report(Campaign("streams of ingest that stall, or stop half way", runs, 0, 0, 0, note))
    assert seen.grown <= 2 * BOUND


@pytest.mark.parametrize("runs", RUNS)
def test_stalls_halves_and_resets_beside_a_caller(
    tmp_path: Path, report: Callable[[Campaign], None], runs: int
) -> None:
    repository, red = tmp_path / "models", picture()
    colour_model(repository / "colours" / "1" / "model.onnx")
    flags = [
        *("--model-repository", str(repository), "--receive-timeout-seconds", "2"),
        *("--max-message-bytes", str(LARGEST), "--max-image-bytes", str(LARGEST // 2)),
        *("--max-bytes-in-flight", str(BOUND), "--log-level", "warning"),
    ]
    upload = inference_service_pb2.UploadHeader(
        sha256=hashlib.sha256(red).digest(), size_bytes=len(red)
    )
    parts = [
        inference_service_pb2.UploadImageRequest(header=upload),
        inference_service_pb2.UploadImageRequest(chunk=red),
    ]
    answered = 0
    with inference.started(tmp_path, *flags) as server, inference.client(server) as client:

        def turn() -> None:
            nonlocal answered
            kept = client.stub.UploadImage(iter(parts), timeout=DEADLINE).image.reference
            for image in (red, inference_pb2.Image(reference=kept)):
                answer = client.infer(image, timeout=DEADLINE)
                assert inference.names(answer.results[0]) == ["red"]
                answered += 1

        methods = [INFERENCE + name for name in ("Infer", "UploadImage", "ListModels")]
        methods.append("/inference.GRPCInferenceService/ModelInfer")
        seen = beside(
            server.process.pid,
            turn,
            lambda: flood(server.address, methods, runs, random.Random(SEED)),
        )
    note = f"{answered} answers, {seen}"
    report(Campaign("calls of inference that stall, or stop half way", runs, 0, 0, 0, note))
    assert seen.grown <= 2 * BOUND
