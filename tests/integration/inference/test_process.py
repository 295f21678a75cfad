"""The process: its start, its health, its end, and the ways it refuses to start."""

import os
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    InferFuture,
    ask,
    client,
    failures,
    names,
    started,
)
from tests.integration.inference.waiting_service import HOLD
from tests.unit.inference_service.tiny_onnx import colour_model, picture

RED = picture()


def test_not_serving_until_warm(tmp_path: Path) -> None:
    version = tmp_path / "models" / "colours" / "1"
    colour_model(version / "model.onnx")
    os.mkfifo(version / HOLD)  # loading waits until somebody writes
    address = f"unix:{tmp_path}/socket"  # known before the ready line
    flags = ["--model-repository", str(tmp_path / "models"), "--listen", address]
    server = InferenceProcess(tmp_path, *flags)
    try:
        _until((tmp_path / "socket").exists)
        caller = InferenceStub(address)
        with caller.channel:
            grpc.channel_ready_future(caller.channel).result(30)
            assert caller.health("") == "SERVING"
            assert caller.health() == "NOT_SERVING"
            error = caller.refusal(RED)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
            (version / HOLD).write_text("go on")
            server.wait_ready()
            assert caller.health() == "SERVING"
            assert caller.health("inference.GRPCInferenceService") == "SERVING"
            assert names(caller.infer(RED).results[0]) == ["red"]
    finally:
        server.stop(signal.SIGKILL)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_lets_a_running_call_finish(tmp_path: Path, slow: Path) -> None:
    with started(tmp_path, "--model-repository", str(slow)) as server, client(server) as caller:
        call = caller.stub.Infer.future(ask(RED), timeout=60)
        _until_in_flight(caller, call)
        codes: list[int] = []
        stopping = threading.Thread(target=lambda: codes.append(server.stop()))
        stopping.start()
        assert names(call.result().results[0]) == ["red"]
        stopping.join(30)
        assert codes == [0]


def _until_in_flight(caller: InferenceStub, call: InferFuture) -> None:
    """Wait until the call has arrived; it takes some hundred milliseconds to answer."""
    assert caller.health() == "SERVING"  # came to the server after the call, over one connection
    assert not call.done()


def test_what_does_not_finish_in_the_grace_may_be_asked_again(tmp_path: Path, slow: Path) -> None:
    flags = [
        *("--model-repository", str(slow), "--workers", "1", "--grace-seconds", "0.3"),
        *("--idempotency-database", str(tmp_path / "claims.sqlite")),
    ]
    keys = [(("idempotency-key", str(uuid.uuid4())),) for _ in range(8)]
    with started(tmp_path, *flags) as server, client(server) as caller:
        calls = [caller.stub.Infer.future(ask(RED), timeout=60, metadata=key) for key in keys]
        _until(lambda: _claims(tmp_path, "TRUE") == len(calls))
        assert server.stop() == 0
        errors = failures(calls)
        assert "Traceback" not in server.log.read_text()
    assert len(errors) >= 4
    assert {error.code for error in errors} == {grpc.StatusCode.UNAVAILABLE}
    assert {error.reason for error in errors} == {"SHUTTING_DOWN"}
    assert _claims(tmp_path, "ok IS NULL") == 0


def _claims(folder: Path, clause: str) -> int:
    with closing(sqlite3.connect(folder / "claims.sqlite")) as reader:
        count: int = reader.execute(f"SELECT count(*) FROM claims WHERE {clause}").fetchone()[0]
        return count


def test_sigterm_with_nothing_to_do(tmp_path: Path, colours: Path) -> None:
    flags = ["--model-repository", str(colours), "--default-model", "other"]
    with started(tmp_path, *flags) as server:
        begun = time.perf_counter()
        assert server.stop() == 0
        assert time.perf_counter() - begun < 5


def exit_of(folder: Path, *flags: str) -> tuple[int, str]:
    """Return the exit code and the last line on stderr of a process that does not start."""
    server = InferenceProcess(folder, *flags)
    try:
        code = server.process.wait(60)
    finally:
        server.stop(signal.SIGKILL)
    lines = server.log.read_text().splitlines()
    assert not any("Traceback" in line for line in lines)
    return code, lines[-1]


def test_a_bad_model_folder_is_one_clear_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert exit_of(tmp_path, "--model-repository", str(missing)) == (
        1,
        f"python -m inference_service: model_repository: {missing} is not a folder",
    )


def test_a_broken_model_is_one_clear_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "plates" / "3"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"no model")
    code, line = exit_of(tmp_path, "--model-repository", str(tmp_path / "models"))
    assert code == 1
    assert line.startswith("python -m inference_service: model plates version 3: ")
    assert "model.onnx" in line


@pytest.mark.skipif(
    Path("/proc/driver/nvidia").exists(), reason="this machine may well have the provider"
)
def test_a_provider_that_is_not_there_is_refused(tmp_path: Path, colours: Path) -> None:
    code, line = exit_of(
        tmp_path,
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--providers", "CUDAExecutionProvider,CPUExecutionProvider"),
    )
    assert code == 1
    assert "CUDAExecutionProvider" in line


def test_a_bad_setting_is_one_clear_sentence(tmp_path: Path) -> None:
    code, line = exit_of(tmp_path, "--workers", "0")
    assert code == 2
    assert "workers: must be" in line


def test_a_database_that_cannot_be_used(tmp_path: Path, colours: Path) -> None:
    code, line = exit_of(
        tmp_path,
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--idempotency-database", str(tmp_path)),
    )
    assert code == 1
    assert "idempotency_database: " in line


def test_another_broken_model_does_not_keep_the_server_down(tmp_path: Path) -> None:
    colour_model(tmp_path / "models" / "good" / "1" / "model.onnx")
    (tmp_path / "models" / "bad" / "1").mkdir(parents=True)
    flags = ["--model-repository", str(tmp_path / "models"), "--default-model", "good"]
    with started(tmp_path, *flags) as server, client(server) as caller:
        assert names(caller.infer(RED).results[0]) == ["red"]
        assert "not loaded: model bad version 1" in server.log.read_text()


def test_callers_over_their_limit(tmp_path: Path, colours: Path) -> None:
    flags = [
        *("--model-repository", str(colours), "--default-model", "colours"),
        *("--rate-limit-per-second", "0.01", "--rate-limit-burst", "2"),
    ]
    with started(tmp_path, *flags) as server, client(server) as caller:
        caller.infer(RED)
        caller.infer(RED)
        error = caller.refusal(RED)
        assert (error.code, error.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
        )
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 100
        assert error.quotas[0].subject == "caller:anonymous"
        assert caller.health() == "SERVING"
