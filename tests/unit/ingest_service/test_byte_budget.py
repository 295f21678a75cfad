import asyncio

import pytest

from ingest_service.byte_budget import ByteBudget


async def settled() -> None:
    """Lets every task that can move do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_bytes_within_the_limit_do_not_wait() -> None:
    budget = ByteBudget(10)
    async with asyncio.timeout(1):
        await budget.acquire(4)
        await budget.acquire(6)


async def test_bytes_beyond_the_limit_wait_for_their_turn_in_order() -> None:
    budget = ByteBudget(10)
    await budget.acquire(8)
    order: list[int] = []

    async def take(size: int) -> None:
        await budget.acquire(size)
        order.append(size)

    async with asyncio.TaskGroup() as tasks:
        for size in (7, 3, 1):
            tasks.create_task(take(size))
        await settled()
        assert order == [], "a small one must not overtake a large one for ever"
        budget.release(8)
        await settled()
        assert order == [7, 3]
        budget.release(7)
    assert order == [7, 3, 1]


async def test_more_than_the_limit_is_let_in_alone() -> None:
    budget = ByteBudget(10)
    await budget.acquire(1)
    large = asyncio.create_task(budget.acquire(50))
    await settled()
    assert not large.done()
    budget.release(1)
    async with asyncio.timeout(1):
        await large


@pytest.mark.parametrize("before_its_turn", [True, False])
async def test_who_gives_up_waiting_takes_nothing(before_its_turn: bool) -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    waiting = asyncio.create_task(budget.acquire(10))
    next_ = asyncio.create_task(budget.acquire(10))
    await settled()
    if before_its_turn:
        waiting.cancel()
        await settled()
        budget.release(10)
    else:
        budget.release(10)
        waiting.cancel()
    async with asyncio.timeout(1):
        await next_
    assert waiting.cancelled()
