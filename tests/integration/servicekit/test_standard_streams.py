"""Standard streams that are closed, full, or have no reader end nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.faults.disks import filled, limited, small_disk
from tests.integration.cli.terminal import SIGHTLINE, environment, lines
from tests.integration.inference.process import InferenceStub, names
from tests.integration.servicekit.test_unread_stderr import log
from tests.unit.edge.sources.monitors import save_pictures
from tests.unit.inference_service.tiny_onnx import colour_model, corrupt, picture

PATIENCE = 60.0
CLOSED = ">&- 2>&- <&-"
GONE = "> >(exec true) 2>&1"  # a pipe, whose reader ends at once
FULL = ">/dev/full 2>&1"
NAMES = {
    "ingest_service": "sightline.ingest.v1.IngestService",
    "inference_service": "sightline.inference.v1.InferenceService",
}


def until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def started(redirection: str, *words: object, cwd: Path) -> "subprocess.Popen[bytes]":
    """Start a command with its streams redirected by a shell."""
    line = f'exec "$0" "$@" {redirection}'
    return subprocess.Popen(["bash", "-c", line, *map(str, words)], env=environment(), cwd=cwd)


def stream_of(process: "subprocess.Popen[bytes]", number: int) -> str:
    return str(Path(f"/proc/{process.pid}/fd/{number}").readlink())


def wait_until_serving(address: str, service: str) -> None:
    """Wait until a service serves: it listens before, and its ready line cannot be read here."""
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]

        def serves() -> bool:
            answer = check(request, timeout=PATIENCE, wait_for_ready=True)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        until(serves)


@contextmanager
def service(module: str, folder: Path, redirection: str, *flags: str) -> Iterator[str]:
    """Run a service; yield its address; check that SIGTERM ends it with exit code 0."""
    address = f"unix:{folder}/socket"
    words = [sys.executable, "-m", module, "--listen", address, *flags]
    process = started(redirection, *words, cwd=folder)
    try:
        wait_until_serving(address, NAMES[module])
        if redirection == CLOSED:
            assert {stream_of(process, number) for number in range(3)} == {"/dev/null"}
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("redirection", [CLOSED, GONE, FULL])
def test_ingest_serves_and_ends_with_0(tmp_path: Path, redirection: str) -> None:
    flags = ["--database", str(tmp_path / "sightline.duckdb")]
    with service("ingest_service", tmp_path, redirection, *flags) as address:
        assert log(address, 1, 3).committed_through == 3


@pytest.mark.parametrize("redirection", [CLOSED])
def test_inference_serves_and_ends_with_0(tmp_path: Path, redirection: str) -> None:
    colour_model(tmp_path / "models" / "colours" / "1" / "model.onnx")
    flags = ["--model-repository", str(tmp_path / "models"), "--log-level", "debug"]
    with service("inference_service", tmp_path, redirection, *flags) as address:
        client = InferenceStub(address)
        with client.channel:
            assert client.refusal(corrupt()).reason == "IMAGE_CORRUPT"
            assert names(client.infer(picture()).results[0]) == ["red"]


@pytest.mark.parametrize("redirection", [GONE])
def test_up_keeps_both_services(tmp_path: Path, redirection: str) -> None:
    colour_model(tmp_path / "models" / "colours" / "1" / "model.onnx")
    addresses = [f"unix:{tmp_path}/{name}" for name in ("ingest", "inference")]
    words = ["up", "--model-repository", "models", "--data", "data"]
    words += ["--ingest-listen", addresses[0], "--inference-listen", addresses[1]]
    words += ["--console-listen", ""]
    process = started(redirection, *SIGHTLINE, *words, cwd=tmp_path)
    try:
        for address, name in zip(addresses, NAMES.values(), strict=True):
            wait_until_serving(address, name)
        assert log(addresses[0], 1, 3).committed_through == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_the_log_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    said = disk / "log"
    with ExitStack() as stack:
        mounted = stack.enter_context(small_disk(disk, 1))
        flags = ["--database", str(tmp_path / "sightline.duckdb")]
        with service("ingest_service", tmp_path, f">{said} 2>&1", *flags) as address:
            log(address, 1, 1)
            until(lambda: "PredictionLog" in said.read_text() and '"pid"' in said.read_text())
            (ready,) = (line for line in lines(said.read_text()) if line["event"] == "ready")
            # A tmpfs has no room when the last page of the file is full.
            full = 4096 if mounted else said.stat().st_size + 100
            with filled(disk, 0) if mounted else limited(ready["pid"], disk, 100):
                until(lambda: bool(log(address, 1, 1)) and said.stat().st_size % full == 0)
            until(lambda: bool(log(address, 1, 1)) and said.stat().st_size > full)
        told = said.read_text()[full:].splitlines()
    events = [json.loads(line)["event"] for line in told[1:]]  # the first line may be torn
    assert {"call", "drained"} <= set(events)


@pytest.mark.parametrize("redirection", [CLOSED, GONE])
def test_a_camera_run_ends_as_it_would(tmp_path: Path, redirection: str) -> None:
    save_pictures(tmp_path / "pictures", *(f"{n}.jpg" for n in range(3)))
    (tmp_path / "pictures/bad.jpg").write_bytes(b"no picture")
    colour_model(tmp_path / "colours.onnx")
    words = ["log", "pictures", "--model", "colours.onnx", "--mode", "device", "--wait", "0"]
    words += ["--spool-dir", "spool", "--device-id", "gate-1", "--device-process"]
    process = started(redirection, *SIGHTLINE, *words, cwd=tmp_path)
    assert process.wait(PATIENCE) == 1, "an image without an answer, and nothing is committed"
    show = [*SIGHTLINE, "spool", "show", "spool", "--json"]
    shown = subprocess.run(show, cwd=tmp_path, env=environment(), capture_output=True, check=True)
    assert lines(shown.stdout.decode())[0]["predictions"] == 3


CLI = [
    ("--version",),
    ("serve", "ingest", "--help"),
    ("serve", "inference", "--version"),
    ("spool", "export", "spool"),
    ("doctor", "--spool-dir", "spool"),
]


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sightline import Prediction, PredictionLogger

    folder = tmp_path_factory.mktemp("spooled")
    with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=folder / "spool") as logger:
        for number in range(200):
            logger.log(Prediction(f"{number}.jpg", "parts"))
        assert logger.flush(timeout=PATIENCE)
    return folder


@pytest.mark.parametrize("words", CLI, ids=lambda words: words[0] + words[-1])
def test_a_command_ends_quietly_without_a_reader(spooled: Path, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*SIGHTLINE, *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=spooled,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writing)
    assert (done.stderr, done.returncode) == (b"", 1)


@pytest.mark.parametrize("words", CLI, ids=lambda words: words[0] + words[-1])
def test_a_command_says_that_its_output_is_incomplete(
    spooled: Path, words: tuple[str, ...]
) -> None:
    process = started(">/dev/full 2>said", *SIGHTLINE, *words, cwd=spooled)
    assert process.wait(PATIENCE) == 1
    (said,) = (spooled / "said").read_text().splitlines()
    assert "stdout cannot be written: No space left on device" in said


def test_a_command_with_closed_streams_does_its_work(spooled: Path) -> None:
    assert started(CLOSED, *SIGHTLINE, "spool", "export", "spool", cwd=spooled).wait(PATIENCE) == 0
