import asyncio
import contextlib

import grpc
import pytest

from servicekit.auth.caller import unauthenticated
from servicekit.auth.recheck import rechecked
from servicekit.errors import SightlineError

REVOKED = unauthenticated("API_KEY_REVOKED", "revoked")
AWAY = SightlineError(grpc.StatusCode.UNAVAILABLE, "JWKS_UNAVAILABLE", "away")


class Check:
    """Raises what it is given, one by one, and passes when nothing is left."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.asked = asyncio.Event()

    async def __call__(self) -> None:
        error = self.errors.pop(0) if self.errors else None
        if not self.errors:
            self.asked.set()
        if error is not None:
            raise error


async def test_what_lasts_ends_when_its_credential_does() -> None:
    cleaned = []

    async def call() -> None:
        async with rechecked(Check(None, AWAY, REVOKED), 0.001):
            try:
                await asyncio.sleep(30)
            finally:
                cleaned.append(True)

    with pytest.raises(SightlineError) as caught:
        await call()
    assert caught.value is REVOKED
    assert cleaned == [True]


async def test_a_check_that_breaks_is_asked_again() -> None:
    with pytest.raises(SightlineError) as caught:
        async with rechecked(Check(RuntimeError("unforeseen"), REVOKED), 0.001):
            await asyncio.sleep(30)
    assert caught.value is REVOKED


async def test_a_good_credential_changes_nothing() -> None:
    check = Check(None, None, AWAY)
    async with rechecked(check, 0.001):
        await asyncio.wait_for(check.asked.wait(), 30)
    async with asyncio.timeout(5):  # the watcher is gone
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.001)


async def test_what_is_quick_is_not_checked() -> None:
    check = Check(REVOKED)
    async with rechecked(check, 30):
        pass
    assert check.errors == [REVOKED]


async def test_a_timeout_of_the_blocks_own_is_passed_on() -> None:
    with pytest.raises(TimeoutError):
        async with rechecked(Check(), 0.001):
            raise TimeoutError


async def test_a_cancelled_call_is_cancelled() -> None:
    async def call() -> None:
        async with rechecked(Check(), 0.001):
            await asyncio.sleep(30)

    task = asyncio.create_task(call())
    await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
