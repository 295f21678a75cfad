"""A device that dies is noticed; one that stumbles is not, nor a model that is at fault itself."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from inference_service.device import DeviceCheck
from inference_service.models.engine import Model
from inference_service.models.loader import Runtime, load_model
from servicekit.errors import SightlineError
from tests.unit.inference_service.failing_onnx import SIDE, choosy_model, mortal_model
from tests.unit.inference_service.tiny_onnx import colour_model

WARM_UP = 1  # runs


@pytest.fixture
def healthy(tmp_path: Path) -> Model:
    return loaded(colour_model(tmp_path / "healthy" / "1" / "model.onnx"))


def loaded(path: Path) -> Model:
    return load_model(path.parent, Runtime())


def dying(folder: Path, name: str = "dying") -> Model:
    """Return a model whose next run is its last."""
    return loaded(mortal_model(folder / name / "1" / "model.onnx", WARM_UP + 1))


def dead(folder: Path, name: str = "dead") -> Model:
    model = dying(folder, name)
    assert fails(model, 0) is None
    assert fails(model, 0) == "MODEL_RUN_FAILED"
    return model


def fails(model: Model, level: float) -> str | None:
    """Return the reason why a run on a grey picture fails."""
    try:
        model.run(np.full((1, 3, SIDE, SIDE), level, dtype=np.float32))
    except SightlineError as error:
        return error.reason
    return None


async def checked(check: DeviceCheck) -> None:
    assert check._task is not None
    await check._task


async def test_a_run_that_fails_alone_changes_nothing(tmp_path: Path) -> None:
    check = DeviceCheck()
    model = loaded(choosy_model(tmp_path / "choosy" / "1" / "model.onnx"))
    assert fails(model, 1) == "MODEL_RUN_FAILED"
    check.suspect(model)
    await checked(check)
    assert check.alive
    check.require()


async def test_a_device_on_which_nothing_runs_is_dead_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deaths: list[bool] = []
    check = DeviceCheck()
    check.on_death = lambda: deaths.append(check.alive)
    first, second = dead(tmp_path, "a"), dead(tmp_path, "b")
    check.suspect(first, [first, second])
    await checked(check)
    assert deaths == [False]
    assert "the device of model a is dead" in caplog.text
    for _ in range(2):
        with pytest.raises(SightlineError) as caught:
            check.require()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason == "DEVICE_DEAD"
        task = check._task
        check.suspect(second, [first, second])
        assert check._task is task, "it is over: there is nothing to check any more"


async def test_a_model_that_fails_while_others_run_is_at_fault_itself(
    tmp_path: Path, healthy: Model, caplog: pytest.LogCaptureFixture
) -> None:
    check, broken = DeviceCheck(), dead(tmp_path)
    check.suspect(broken, [broken, healthy])
    await checked(check)
    assert check.alive
    assert "model dead version 1 fails every run" in caplog.text


async def test_what_runs_on_another_device_is_no_witness(tmp_path: Path, healthy: Model) -> None:
    check, broken = DeviceCheck(), dead(tmp_path)
    broken.network.session.providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    check.suspect(broken, [broken, healthy])
    await checked(check)
    assert not check.alive


async def test_many_failures_are_one_check(healthy: Model) -> None:
    check = DeviceCheck()
    check.suspect(healthy)
    task = check._task
    for _ in range(5):
        check.suspect(healthy)
        assert check._task is task
    await checked(check)
    check.suspect(healthy)
    assert check._task is not task
    await checked(check)
    assert check.alive


async def test_a_device_without_memory_for_now_is_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(_: object) -> None:
        raise MemoryError("none left")

    check, model = DeviceCheck(), dying(tmp_path)
    monkeypatch.setattr(type(model.network), "warm_up", lack)
    check.suspect(model)
    await checked(check)
    assert check.alive


def test_a_run_without_memory_may_be_tried_again(
    healthy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(_: object, __: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(type(healthy.network.session), "run", lack)
    assert fails(healthy, 0) == "OUT_OF_MEMORY"
