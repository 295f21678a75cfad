"""How late a flooding connection is answered; what it costs others is an integration test."""

import asyncio
from typing import Any, cast

import grpc
import pytest

from servicekit import call_notes
from servicekit.errors import SightlineError
from servicekit.tarpit import BURST, LONGEST_SECONDS, PER_SECOND, Tarpit


class FakeContext:
    """Where a call comes from."""

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"


CONTEXT = cast("grpc.aio.ServicerContext[Any, Any]", FakeContext())
UNAUTHENTICATED = SightlineError(grpc.StatusCode.UNAUTHENTICATED, "API_KEY_UNKNOWN", "no")
BAD_ARGUMENT = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "no")


async def fails(error: BaseException) -> None:
    raise error


async def works_then_is_cancelled() -> None:
    call_notes.add("request_bytes", 1)
    raise asyncio.CancelledError


async def held(tarpit: Tarpit, proceed: Any, method: str = "/a.B/C") -> bool:
    """Returns whether one more call than a burst waits."""
    for _ in range(BURST):
        with pytest.raises((SightlineError, asyncio.CancelledError)):
            await asyncio.create_task(tarpit(method, CONTEXT, proceed))
    last = asyncio.create_task(tarpit(method, CONTEXT, proceed))
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


async def test_calls_that_work_never_wait() -> None:
    tarpit = Tarpit(lambda: 0.0)

    async def works() -> int:
        return 1

    async with asyncio.timeout(LONGEST_SECONDS / 2):
        answers = [await tarpit("/a.B/C", CONTEXT, works) for _ in range(10 * BURST)]
    assert sum(answers) == 10 * BURST
