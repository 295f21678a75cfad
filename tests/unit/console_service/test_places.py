"""Places: a bounded number at the same time, a bounded number that wait."""

import asyncio

import pytest

from console_service.places import RequestPlaces
from servicekit.errors import SightlineError


def places(limit: int, waiting: int) -> RequestPlaces:
    return RequestPlaces(limit, waiting, "BUSY", "requests (setting max_requests)")


async def test_a_place_that_is_left_is_taken_by_the_next() -> None:
    made, order = places(1, 1), []

    async def use(name: str) -> None:
        async with made.place(5):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(use("a"), use("b"))
    assert (order, made.taken) == (["a", "b"], 0)


async def test_one_too_many_is_refused_at_once() -> None:
    made = places(1, 0)
    async with made.place(5):
        with pytest.raises(SightlineError, match=r"at most 1 requests \(setting max_req") as caught:
            async with made.place(5):
                pass
    assert (caught.value.reason, caught.value.retry_after) == ("BUSY", 1)


async def test_one_that_waits_too_long_is_refused() -> None:
    made = places(1, 1)
    async with made.place(5):
        with pytest.raises(SightlineError, match="at most 1 requests"):
            async with made.place(0.01):
                pass
    async with made.place(5):
        assert made.taken == 1


async def test_a_place_is_left_after_an_error_and_by_one_that_goes() -> None:
    made = places(1, 1)
    with pytest.raises(ValueError, match="x"):
        async with made.place(5):
            raise ValueError("x")
    async with made.place(5):
        waiting = asyncio.ensure_future(made.place(5).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with made.place(0.5):
        assert made.taken == 1


async def test_no_place_at_all_refuses_everyone() -> None:
    with pytest.raises(SightlineError, match="at most 0"):
        async with places(0, 0).place(5):
            pass
