"""A device that dies is noticed; one that stumbles is not."""

import asyncio
import threading
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

from inference_service.device import DeviceCheck
from inference_service.models.engine import Model
from servicekit.errors import SightlineError
from servicekit.vision import ModelError


class Device:
    """Its warm-ups fail as it is told."""

    def __init__(self, *, dead: bool) -> None:
        self.dead = dead
        self.warm_ups = 0
        self.go = threading.Event()
        self.go.set()

    def warm_up(self) -> None:
        self.warm_ups += 1
        assert self.go.wait(10)
        if self.dead:
            raise ModelError("MODEL_RUN_FAILED", "CUDA error 700")


def on(device: Device) -> Model:
    return cast("Model", SimpleNamespace(name="plates", version="1", detector=device))


async def checked(check: DeviceCheck) -> None:
    assert check._task is not None
    await check._task


async def test_a_run_that_fails_alone_changes_nothing() -> None:
    check, device = DeviceCheck(), Device(dead=False)
    check.suspect(on(device))
    await checked(check)
    assert check.alive
    check.require()
    assert device.warm_ups == 1


async def test_a_device_that_fails_again_is_dead() -> None:
    deaths: list[bool] = []
    check, device = DeviceCheck(), Device(dead=True)
    check.on_death = lambda: deaths.append(check.alive)
    check.suspect(on(device))
    await checked(check)
    assert deaths == [False]
    with pytest.raises(SightlineError) as caught:
        check.require()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == "DEVICE_DEAD"


async def test_many_failures_are_one_check() -> None:
    check, device = DeviceCheck(), Device(dead=False)
    device.go.clear()
    for _ in range(5):
        check.suspect(on(device))
        await asyncio.sleep(0)
    device.go.set()
    await checked(check)
    assert device.warm_ups == 1
    check.suspect(on(device))
    await checked(check)
    assert device.warm_ups == 2
