"""Tests with two hours' worth of mixed calls at full speed: every answer right, nothing grows."""

import asyncio
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from sightline.inference.v1 import inference_service_pb2

from servicekit.errors import from_rpc_error
from tests.faults.campaign import Campaign
from tests.faults.inference_lab import Watched, watched
from tests.faults.inference_load import Caller, Expected, Kept, call_for
from tests.integration.inference.process import InferenceStub, ask, client
from tests.unit.inference_service.open_inference.networks import loaded, network
from tests.unit.inference_service.tiny_onnx import colour_model, picture

PATIENT = pytest.mark.timeout(600)
SOAK = [pytest.mark.soak, pytest.mark.timeout(7200)]
CALLERS = 8
GRACE_SECONDS = 10.0
TWO_HOURS = 2 * 60 * 60 * 20
"""Number of calls: two hours at 20 per second."""


@pytest.mark.parametrize(
    "count", [pytest.param(3_000, marks=PATIENT), pytest.param(TWO_HOURS, marks=SOAK)]
)
async def test_mixed_calls(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[Campaign], None],
    count: int,
) -> None:
    repository, kept = _repository(tmp_path), Kept()
    expected = Expected(loaded(repository / "two/1/model.onnx"))
    flags = [
        *("--model-repository", str(repository), "--default-model", "colours"),
        *("--repository-poll-seconds", "0.2", "--queue-size", "1000"),
        *("--max-batch-size", "4", "--batch-wait-seconds", "0.001"),
        *("--upload-ttl-seconds", "2", "--grace-seconds", str(GRACE_SECONDS)),
    ]
    with watched(tmp_path, monkeypatch, *flags) as lab:
        callers = [Caller(lab.server.address, expected, kept, seed) for seed in range(CALLERS)]
        operator = asyncio.create_task(_operate(lab, tmp_path))
        await call_for(callers, count // 3)
        before = lab.held()
        await call_for(callers, count - count // 3)
        reloads = await _end(operator)
        for caller in callers:
            await caller.close()
        after = await asyncio.to_thread(lab.held_without_growth, before)
        await asyncio.to_thread(_drain_under_load, lab)
        lab.stop()
    assert reloads >= 2
    assert kept.calls.total() >= count
    note = (
        f"{kept.calls.total()} of {len(kept.calls)} kinds, {kept.errors.total()} errors that were"
        f" asked for; {reloads} reloads; slowest {kept.slowest:.2f} s;"
        f" {(after.memory - before.memory) / 2**20:.0f} MiB grown"
    )
    report(Campaign("mixed calls", kept.calls.total(), 0, kept.doubled, 0, note))


def _repository(folder: Path) -> Path:
    repository = folder / "models"
    for name in ("colours/1", "other/1", "hot/1"):
        colour_model(repository / name / "model.onnx", batches=name != "other/1")
    network(repository / "two/1/model.onnx")
    (repository / "two/1/model.yaml").write_text("task: classify\n")
    return repository


async def _operate(lab: Watched, folder: Path) -> int:
    """Replace each version of `hot` by the next one, until cancelled.

    Returns:
        The number of replacements.
    """
    version = 1
    with client(lab.server) as stub:
        try:
            while True:
                await _replace(lab, stub, folder, version)
                version += 1
        except asyncio.CancelledError:
            return version - 1


async def _replace(lab: Watched, stub: InferenceStub, folder: Path, version: int) -> None:
    hot, new = folder / "models/hot", folder / f"new/{version + 1}"
    colour_model(new / "model.onnx", batches=True)
    new.rename(hot / str(version + 1))
    await _until_listed(lab, stub, version + 1, there=True)
    old = folder / f"old-{version}"
    (hot / str(version)).rename(old)  # atomically, or the server could read half of it
    shutil.rmtree(old)
    await _until_listed(lab, stub, version, there=False)


async def _until_listed(lab: Watched, stub: InferenceStub, version: int, *, there: bool) -> None:
    lab.server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 60
    while (str(version) in await asyncio.to_thread(_versions, stub)) is not there:
        assert time.monotonic() < end, (version, there)
        await asyncio.sleep(0.1)


def _versions(stub: InferenceStub) -> set[str]:
    listed = stub.stub.ListModels(inference_service_pb2.ListModelsRequest(), timeout=30)
    return {model.version for model in listed.models if model.name == "hot"}


async def _end(operator: "asyncio.Task[int]") -> int:
    operator.cancel()
    return await operator


def _drain_under_load(lab: Watched) -> None:
    """End the server while calls are in flight: each is answered or may be retried."""
    with client(lab.server) as stub:
        request = ask(*[picture()] * 4)
        calls = [stub.stub.Infer.future(request, timeout=60) for _ in range(4 * CALLERS)]
        calls[0].result()  # some have ended, others have not
        begun = time.monotonic()
        assert lab.server.stop() == 0
        assert time.monotonic() - begun < GRACE_SECONDS + 5
        for call in calls:
            error = call.exception()
            if error is not None:
                assert isinstance(error, grpc.RpcError)
                assert from_rpc_error(error).code is grpc.StatusCode.UNAVAILABLE, error
