"""Calls that the gate admits before the server is ready."""

import asyncio
import contextlib
from typing import Any, cast

import pytest

from servicekit.calls.gate import Gate
from servicekit.errors import SightlineError
from servicekit.health import HealthService

LIVE, INFER = "/test.v1.Echo/Live", "/test.v1.Echo/Infer"


async def answer() -> str:
    return "answered"


async def call(gate: Gate, method: str) -> str:
    return await gate(method, cast("Any", None), answer)


async def test_only_what_is_always_open_passes_before_the_server_is_warm() -> None:
    health = HealthService(["test.v1.Echo"])
    gate = Gate(health, [LIVE])
    assert await call(gate, LIVE) == "answered"
    with pytest.raises(SightlineError) as caught:
        await call(gate, INFER)
    assert (caught.value.reason, caught.value.retry_after) == ("NOT_READY", 1.0)
    health.open()
    assert await call(gate, INFER) == "answered"


async def test_what_is_always_open_is_waited_for_as_any_call() -> None:
    gate = Gate(HealthService(["test.v1.Echo"]), [LIVE])
    inside = []

    async def look() -> None:
        inside.append(gate._empty.is_set())

    await gate(LIVE, cast("Any", None), look)
    await gate.empty()
    assert inside == [False]


async def test_calls_that_have_arrived_are_refused_until_none_comes_any_more() -> None:
    health = HealthService(["test.v1.Echo"])
    health.open()
    gate, reasons = Gate(health, [LIVE]), []

    async def arrive() -> None:
        for _ in range(5):
            with pytest.raises(SightlineError) as caught:
                await call(gate, INFER)
            reasons.append((caught.value.code.name, caught.value.reason))
            await asyncio.sleep(0)

    closing = asyncio.create_task(gate.close())
    await asyncio.sleep(0)
    await arrive()
    await closing
    assert reasons == [("UNAVAILABLE", "SHUTTING_DOWN")] * 5


async def test_closing_ends_though_calls_keep_coming() -> None:
    gate = Gate(HealthService(["test.v1.Echo"]))
    closing = asyncio.create_task(gate.close())
    while not closing.done():
        await asyncio.sleep(0.001)
        with contextlib.suppress(SightlineError):
            await call(gate, INFER)
    await closing
