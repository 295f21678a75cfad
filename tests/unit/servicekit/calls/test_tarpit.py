"""The delay of a flooding connection; its cost for others is an integration test."""

import asyncio
import gc
import weakref
from typing import Any, cast

import grpc
import pytest

from servicekit.auth.caller import ALL_DEVICES, ALL_SCOPES, Caller, Proof, set_caller
from servicekit.calls.tarpit import (
    BURST,
    HURRY_SECONDS,
    LONGEST_SECONDS,
    PER_SECOND,
    REFUSED_BURST,
    REFUSED_SHARE,
    Tarpit,
)
from servicekit.errors import SightlineError
from servicekit.telemetry import call_notes


class FakeContext:
    """A context with the peer of a call and the time left."""

    def __init__(self, left: float) -> None:
        self.left = left

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    def time_remaining(self) -> float:
        return self.left


def context(left: float = 60.0) -> "grpc.aio.ServicerContext[Any, Any]":
    return cast("grpc.aio.ServicerContext[Any, Any]", FakeContext(left))


CONTEXT = context()
QUEUE_FULL = SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "no")
UNAUTHENTICATED = SightlineError(grpc.StatusCode.UNAUTHENTICATED, "API_KEY_UNKNOWN", "no")
BAD_ARGUMENT = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "no")


async def fails(error: BaseException) -> None:
    raise error


async def works_then_is_cancelled() -> None:
    call_notes.add("request_bytes", 1)
    raise asyncio.CancelledError


async def held(tarpit: Tarpit, proceed: Any, burst: int = BURST) -> bool:
    """Return True if one more call than a burst waits."""
    for _ in range(burst):
        with pytest.raises((SightlineError, asyncio.CancelledError)):
            await asyncio.create_task(tarpit("/a.B/C", CONTEXT, proceed))
    last = asyncio.create_task(tarpit("/a.B/C", CONTEXT, proceed))
    done, _ = await asyncio.wait({last}, timeout=1 / PER_SECOND / 4)
    tarpit.close()
    await asyncio.gather(last, return_exceptions=True)
    return not done


@pytest.mark.parametrize(
    ("proceed", "waits"),
    [
        (lambda: fails(UNAUTHENTICATED), True),
        (lambda: fails(asyncio.CancelledError()), True),
        (lambda: fails(BAD_ARGUMENT), False),
        (works_then_is_cancelled, False),
    ],
)
async def test_what_brought_nothing_waits(proceed: Any, waits: bool) -> None:
    tarpit = Tarpit(lambda: 0.0)
    assert await held(tarpit, proceed) is waits


async def test_what_a_full_queue_refuses_again_and_again_waits() -> None:
    assert await held(Tarpit(lambda: 0.0), lambda: fails(QUEUE_FULL), REFUSED_BURST)


async def test_calls_that_work_never_wait() -> None:
    tarpit = Tarpit(lambda: 0.0)

    async def works() -> int:
        return 1

    async with asyncio.timeout(LONGEST_SECONDS / 2):
        answers = [await tarpit("/a.B/C", CONTEXT, works) for _ in range(10 * BURST)]
    assert sum(answers) == 10 * BURST


class Request:
    """A request that a handler holds."""


async def test_a_refused_call_that_waits_holds_no_request() -> None:
    found: list[weakref.ref[Request]] = []

    async def refuse() -> None:
        request = Request()
        found.append(weakref.ref(request))
        raise SightlineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "no")

    tarpit = Tarpit(lambda: 0.0)
    calls = [asyncio.create_task(tarpit("/a.B/C", CONTEXT, refuse)) for _ in range(BURST + 5)]
    gc.disable()  # or it could collect what should not need it
    try:
        await asyncio.sleep(1 / PER_SECOND / 4)
        waiting = [call for call in calls if not call.done()]
        assert waiting
        assert not any(request() for request in found[-len(waiting) :])
    finally:
        gc.enable()
        tarpit.close()
        await asyncio.gather(*calls, return_exceptions=True)


async def seconds_until_refused(tarpit: Tarpit, left: float, name: str, calls: int) -> list[float]:
    """Return how long each of so many calls of a caller took that found the queue full."""
    loop = asyncio.get_running_loop()

    async def call() -> float:
        set_caller(Caller(name, Proof.API_KEY, ALL_DEVICES, ALL_SCOPES))
        began = loop.time()
        with pytest.raises(SightlineError):
            await tarpit("/a.B/C", context(left), lambda: fails(QUEUE_FULL))
        return loop.time() - began

    return await asyncio.gather(*(asyncio.create_task(call()) for _ in range(calls)))


async def test_a_full_queue_is_told_late_only_to_who_overdoes_it_and_has_time() -> None:
    left = 3.0
    longest = REFUSED_SHARE * (left - HURRY_SECONDS)
    tarpit = Tarpit(asyncio.get_running_loop().time)
    asking = asyncio.create_task(seconds_until_refused(tarpit, left, "flood", 3 * REFUSED_BURST))
    other = max(await seconds_until_refused(tarpit, left, "other", REFUSED_BURST))
    hasty = max(await seconds_until_refused(tarpit, HURRY_SECONDS, "flood", 5))
    slowest = max(await asking)
    assert longest * 0.9 <= slowest < left / 2, "told within a part of its time"
    assert hasty < longest / 2, "told while it may still ask elsewhere"
    assert other < longest / 2, "another caller pays for none of it"
