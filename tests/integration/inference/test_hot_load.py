"""Models that come, change and go while a real server answers: no call fails by it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from servicekit.errors import SightlineError, from_rpc_error
from tests.integration.inference.process import (
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    started,
)
from tests.integration.inference.waiting_service import HOLD
from tests.unit.inference_service.failing_onnx import mortal_model
from tests.unit.inference_service.tiny_onnx import colour_model, picture

RED = picture()
POLL = "0.05"
SIGHTLINE = [sys.executable, "-c", "from sightline.cli.app import main; main()"]


def generation(path: Path, label: str, **options: Any) -> Path:
    """Write a model that can be told by its label for red."""
    return colour_model(path, names={0: label, 1: "green", 2: "blue"}, **options)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    generation(folder / "steady" / "1" / "model.onnx", "steady")
    return folder


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> Iterator[InferenceProcess]:
    """Serve a repository that the tests change; each has a model of its own."""
    flags = [
        *("--model-repository", str(repository), "--default-model", "steady"),
        *("--repository-poll-seconds", POLL, "--metrics-listen", "127.0.0.1:0"),
    ]
    with started(tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


@pytest.fixture
def service(server: InferenceProcess) -> Iterator[InferenceStub]:
    with client(server) as connected:
        yield connected


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def sightline(*words: str) -> "subprocess.CompletedProcess[bytes]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    command = [*SIGHTLINE, "models", *words, "--json"]
    return subprocess.run(command, env=clean, capture_output=True, timeout=60)


def label(service: InferenceStub, name: str, version: str = "") -> str:
    """Return which generation of a model answers; empty: it is not there."""
    hint = inference_pb2.ModelHint(name=name, version=version)
    call = service.stub.Infer.future(ask(RED, model=hint), timeout=30)
    error = call.exception()
    if error is None:
        return call.result().results[0].detections[0].class_name
    assert isinstance(error, grpc.RpcError)
    assert from_rpc_error(error).code is grpc.StatusCode.NOT_FOUND
    return ""


class Calls:
    """Answers to callers that send requests without a pause."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.errors: list[SightlineError] = []


@contextmanager
def calls(server: InferenceProcess, name: str, version: str = "") -> Iterator[Calls]:
    """Call a model from three threads until the block ends."""
    results, over = Calls(), threading.Event()
    hint = inference_pb2.ModelHint(name=name, version=version)

    def call() -> None:
        with client(server) as own:
            while not over.is_set():
                try:
                    answer = own.infer(RED, model=hint)
                except grpc.RpcError as error:
                    results.errors.append(from_rpc_error(error))
                else:
                    results.labels.append(answer.results[0].detections[0].class_name)

    with ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(call) for _ in range(3)]
        try:
            yield results
        finally:
            over.set()
        for caller in callers:
            caller.result()
    assert results.errors == []


def added(repository: Path, service: InferenceStub, name: str) -> Path:
    """Put generation `a` of a model into the repository; return its folder, once it is served."""
    staged = repository / ".new" / name / "1"
    generation(staged / "model.onnx", "a")
    staged.parent.rename(repository / name)
    until(lambda: label(service, name) == "a")
    return repository / name / "1"


def in_place(folder: Path, label: str) -> None:
    generation(folder / "model.onnx", label)


def slowly_in_place(folder: Path, label: str) -> None:
    whole = generation(folder / ".new.onnx", label).read_bytes()
    with (folder / "model.onnx").open("wb", buffering=0) as file:
        for at in range(0, len(whole), 128):
            file.write(whole[at : at + 128])
            time.sleep(0.01)  # faster than the server looks, as a copy over a network is


def by_rename_of_the_file(folder: Path, label: str) -> None:
    generation(folder / ".new.onnx", label).rename(folder / "model.onnx")


def by_rename_of_the_folder(folder: Path, label: str) -> None:
    generation(folder.parent / ".new" / "model.onnx", label)
    folder.rename(folder.parent / ".old")
    (folder.parent / ".new").rename(folder)
    shutil.rmtree(folder.parent / ".old")


def by_a_link(folder: Path, label: str) -> None:
    generation(folder.parent / f".{label}" / "model.onnx", label)
    if not folder.is_symlink():
        folder.rename(folder.parent / ".before")
    (folder.parent / ".link").symlink_to(f".{label}")
    (folder.parent / ".link").rename(folder)


def by_removal_and_copy(folder: Path, label: str) -> None:
    generation(folder.parent / ".new" / "model.onnx", label)
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / ".new", folder)
    shutil.rmtree(folder.parent / ".new")


@pytest.mark.parametrize(
    "replace",
    [
        in_place,
        slowly_in_place,
        by_rename_of_the_file,
        by_rename_of_the_folder,
        by_a_link,
        by_removal_and_copy,
    ],
)
def test_a_model_is_replaced_under_its_callers(
    server: InferenceProcess,
    service: InferenceStub,
    repository: Path,
    replace: Callable[[Path, str], None],
) -> None:
    name = replace.__name__
    folder = added(repository, service, name)
    with calls(server, name) as results:
        for each in ("b", "c", "d"):
            until(lambda: len(results.labels) > 10)
            replace(folder, each)
            until(lambda label=each: results.labels[-1] == label)  # type: ignore[misc]
    assert list(dict.fromkeys(results.labels)) == ["a", "b", "c", "d"]


def test_a_version_that_comes_is_the_default_and_one_that_goes_is_not_missed(
    server: InferenceProcess, service: InferenceStub, repository: Path, tmp_path: Path
) -> None:
    folder = added(repository, service, "versions")
    file = generation(tmp_path / "best.onnx", "b")
    words = ["add", str(file), "--name", "versions", "--repository", str(repository)]
    with calls(server, "versions") as results, calls(server, "versions", "1") as pinned:
        done = sightline(*words)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["version"] == "2"
        until(lambda: results.labels[-1] == "b")
        assert label(service, "versions", "1") == "a"
    assert list(dict.fromkeys(results.labels)) == ["a", "b"]
    assert set(pinned.labels) == {"a"}
    with calls(server, "versions") as results:
        shutil.rmtree(folder)
        until(lambda: label(service, "versions", "1") == "")
    assert set(results.labels) == {"b"}


def test_without_the_default_model_s_folder_the_server_goes_on(
    server: InferenceProcess, repository: Path
) -> None:
    with calls(server, "") as results:
        (repository / "steady").rename(repository / ".steady")
        until(lambda: "model steady version 1 was removed" in server.log.read_text())
        before = len(results.labels)
        until(lambda: len(results.labels) > before + 20)
        (repository / ".steady").rename(repository / "steady")
    assert set(results.labels) == {"steady"}


def test_a_version_that_is_loaded_can_go_meanwhile(
    server: InferenceProcess, service: InferenceStub, repository: Path
) -> None:
    folder = added(repository, service, "going")
    with calls(server, "going") as results:
        version = folder.with_name("2")
        generation(version / "model.onnx", "b")
        os.mkfifo(version / HOLD)  # loading waits until somebody writes
        with (version / HOLD).open("w") as pipe:  # waits until it is being loaded
            shutil.rmtree(version)
            pipe.write("go on")
        generation(folder.with_name("3") / "model.onnx", "c")
        until(lambda: results.labels[-1] == "c")
    assert "b" not in results.labels
    assert label(service, "going", "2") == ""


def failed_loads(server: InferenceProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
        text = page.read().decode()
    counts = [
        float(line.split()[-1])
        for line in text.splitlines()
        if "load_failures_total{" in line and f'"{name}"' in line
    ]
    return counts[0] if counts else 0


def test_what_cannot_be_loaded_changes_nothing_and_is_said_once(
    server: InferenceProcess, service: InferenceStub, repository: Path
) -> None:
    folder = added(repository, service, "broken")
    with calls(server, "broken") as results:
        (folder / "model.onnx").write_bytes(b"no model")
        folder.with_name("2").mkdir()
        (folder.with_name("2") / "model.onnx").write_bytes(b"no model")
        until(lambda: failed_loads(server, "broken") == 2)
        before = len(results.labels)
        until(lambda: len(results.labels) > before + 20)
    assert set(results.labels) == {"a"}
    log = server.log.read_text()
    assert log.count("not loaded: model broken version 1: ") == 1
    assert log.count("not loaded: model broken version 2: ") == 1
    done = sightline("ls", "--repository", str(repository))
    rows = {(row["name"], row["version"]): row["problem"] for row in json.loads(done.stdout)}
    assert "cannot be loaded as a model" in rows["broken", "1"]
    assert rows["steady", "1"] is None
    assert service.health() == "SERVING"
    assert failed_loads(server, "broken") == 2


def test_a_call_in_flight_ends_on_the_model_that_it_began_with(
    server: InferenceProcess, service: InferenceStub, repository: Path
) -> None:
    version = repository / ".new" / "slow" / "1"
    generation(version / "model.onnx", "old", wait_seconds=1.5)
    version.parent.rename(repository / "slow")
    until(lambda: label(service, "slow") == "old")
    request = ask(RED, model=inference_pb2.ModelHint(name="slow"))
    running = [service.stub.Infer.future(request, timeout=60) for _ in range(4)]
    assert service.health() == "SERVING"  # came to the server after them, over one connection
    by_rename_of_the_file(repository / "slow" / "1", "new")
    until(lambda: server.log.read_text().count("loaded model slow version 1") == 2)
    assert not all(call.done() for call in running)
    answers = [call.result().results[0].detections[0].class_name for call in running]
    assert set(answers) == {"old"}
    until(lambda: label(service, "slow") == "new")


def heavy(path: Path, label: str) -> None:
    """Write a model with 4 MB of weights of its own."""
    model = onnx.load(generation(path.with_name(".heavy.onnx"), label, matmuls=1))
    (eye,) = (each for each in model.graph.initializer if each.name == "eye")
    eye.CopyFrom(numpy_helper.from_array(np.eye(1024, dtype=np.float32), "eye"))
    onnx.save(model, path.with_name(".heavy.onnx"))
    path.with_name(".heavy.onnx").rename(path)


def test_models_that_were_replaced_leave_no_memory_behind(
    server: InferenceProcess, service: InferenceStub, repository: Path
) -> None:
    folder = added(repository, service, "heavy")
    process = psutil.Process(server.process.pid)

    def swap(times: int) -> None:
        for number in range(times):
            new = f"{times}-{number}"
            heavy(folder / "model.onnx", new)
            until(lambda new=new: label(service, "heavy") == new)  # type: ignore[misc]

    swap(6)
    before, files = process.memory_info().rss, process.num_fds()
    swap(18)  # models of 4 MB, the last of which may be unloaded a moment later
    until(lambda: process.memory_info().rss - before < 8 * 4e6)
    until(lambda: process.num_fds() <= files + 2)


def test_sighup_takes_in_what_is_there(tmp_path: Path) -> None:
    models = tmp_path / "models"
    generation(models / "a" / "1" / "model.onnx", "first")
    flags = ["--model-repository", str(models), "--repository-poll-seconds", "0"]
    with started(tmp_path, *flags) as server, client(server) as service:
        generation(models / "a" / "2" / "model.onnx", "second")
        assert label(service, "a") == "first"
        server.process.send_signal(signal.SIGHUP)
        until(lambda: label(service, "a") == "second")
        listed = service.stub.ListModels(inference_service_pb2.ListModelsRequest(), timeout=10)
        assert [(m.version, m.default_version) for m in listed.models] == [
            ("1", False),
            ("2", True),
        ]
        assert server.stop() == 0


def test_a_version_is_pinned(tmp_path: Path) -> None:
    models = tmp_path / "models"
    generation(models / "a" / "1" / "model.onnx", "first")
    generation(models / "a" / "2" / "model.onnx", "second")
    flags = ["--model-repository", str(models), "--default-versions", "a=1"]
    with started(tmp_path, *flags) as server, client(server) as service:
        assert (label(service, ""), label(service, "a", "2")) == ("first", "second")
        done = sightline("ls", "--address", server.address)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["name"], row["version"]) for row in rows] == [("a", "1"), ("a", "2")]
    assert [row["default_version"] for row in rows] == [True, False]
    assert rows[0]["labels"] == ["first", "green", "blue"]


def test_a_device_that_dies_turns_the_server_not_serving_for_good(tmp_path: Path) -> None:
    models = tmp_path / "models"
    mortal_model(models / "mortal" / "1" / "model.onnx", runs=2)  # warm-up, and one call
    with started(tmp_path, "--model-repository", str(models)) as server, client(server) as service:
        service.infer(RED)
        assert service.health() == "SERVING"
        assert service.refusal(RED).reason == "MODEL_RUN_FAILED"
        until(lambda: service.health() == "NOT_SERVING")
        error = service.refusal(RED)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_DEAD")
        # A new model does not bring it back: only a new process does.
        generation(models / "mortal" / "2" / "model.onnx", "new")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "loaded model mortal version 2" in server.log.read_text())
        assert service.refusal(RED).reason == "DEVICE_DEAD"
        assert service.health() == "NOT_SERVING"
        assert server.stop() == 0
