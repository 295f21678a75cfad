"""Turns of calls that are expensive for the event loop."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from inference_service.serving.loop_turns import LoopTurns


async def test_a_call_that_comes_alone_goes_on_at_once() -> None:
    turns, waited = LoopTurns(), 0
    call: Coroutine[Any, Any, None] = turns.wait("one")
    for _ in call.__await__():
        waited += 1
    assert not waited


async def test_callers_go_on_in_turn() -> None:
    turns, order = LoopTurns(), list[str]()

    async def call(name: str) -> None:
        await turns.wait(name.partition(" ")[0])
        order.append(name)

    calls = [asyncio.create_task(call(f"flood {number}")) for number in range(30)]
    calls += [asyncio.create_task(call(f"good {number}")) for number in range(2)]
    async with asyncio.timeout(10):
        await asyncio.gather(*calls)
    # Where this thread stands still for a moment, one more may go on at once.
    assert order.index("good 0") <= 4
    assert order.index("good 1") <= 6
    flood = [name for name in order if name.startswith("flood")]
    assert flood == [f"flood {number}" for number in range(30)]


async def test_other_calls_are_handed_over_between_two_of_them() -> None:
    turns, order = LoopTurns(), list[str]()

    async def call(number: int) -> None:
        await turns.wait("flood")
        order.append(f"checked {number}")

    async def hand_over() -> None:
        for number in range(3):
            await asyncio.sleep(0)
            order.append(f"handed over {number}")

    async with asyncio.timeout(10):
        await asyncio.gather(*(call(number) for number in range(3)), hand_over())
    assert order[0] == "checked 0"
    assert order[-1] == "checked 2"


async def test_who_gives_up_takes_no_turn() -> None:
    turns = LoopTurns()
    await turns.wait("flood")
    gone = [asyncio.create_task(turns.wait("flood")) for _ in range(1000)]
    last = asyncio.create_task(turns.wait("flood"))
    await asyncio.sleep(0)
    for call in gone:
        call.cancel()
    begun = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        await last
    assert asyncio.get_running_loop().time() - begun < 1000 * 0.002
    assert sum(call.cancelled() for call in gone) >= 999  # the first may have gone on


async def test_calls_that_keep_coming_do_not_stop_those_that_wait() -> None:
    turns, went_on = LoopTurns(), 0

    async def call() -> None:
        nonlocal went_on
        await turns.wait("flood")
        went_on += 1

    calls = set()
    async with asyncio.timeout(10):
        while went_on < 5:  # one more in every round of the loop: it is never quiet
            calls.add(asyncio.create_task(call()))
            await asyncio.sleep(0)
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
