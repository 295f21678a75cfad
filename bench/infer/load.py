"""Loads for the servers: closed loops, open loops (Poisson arrivals), and probes."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NamedTuple

from bench.infer.clients import CallerFunction, Connect
from bench.infer.figures import OK, Call, Closed, MeasurementWindow, closed

PATIENCE = 60.0
"""Deadline of a call that must be answered, seconds."""
CONNECTIONS = 16
"""Number of connections over which the arrivals of an open loop are spread."""
_PROBE_PAUSE = 0.01  # after a refused probe, so that the probes do not become a load


class Turn(NamedTuple):
    """Duration of one turn in seconds, and its result."""

    seconds: float
    payload: bytes


async def timed(caller: CallerFunction, seconds: float) -> Call:
    """Make one call and return it as its caller saw it."""
    sent = time.perf_counter()
    answer = await caller(seconds)
    return Call(sent, time.perf_counter(), answer.code)


async def closed_loop(connect: Connect, callers: int, seconds: float) -> Closed:
    """Return the figures of callers that each call again when they are answered.

    Raises:
        RuntimeError: a call was not answered.
    """
    window = MeasurementWindow(callers, seconds)
    calls: list[Call] = []

    async def keep_calling(number: int, caller: CallerFunction) -> None:
        while not window.over(time.perf_counter()):
            calls.append(await timed(caller, PATIENCE))
            window.answered(number, calls[-1].ended)

    async with AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(connect()) for _ in range(callers)]
        await asyncio.gather(*map(keep_calling, itertools.count(), connected))
    return closed(calls, window.began, seconds)


@dataclass(frozen=True, slots=True)
class Open:
    """Calls of an open loop as their callers saw them, times in seconds."""

    calls: list[Call]
    began: float
    ended: float
    """Time at which the last call was or would have been sent."""
    behind: float
    """Largest delay with which a call was sent, for lack of a CPU on the caller's machine."""


def arrivals(per_s: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield the arrival times of independent calls (Poisson), seconds from 0."""
    chance = random.Random(seed)
    at = chance.expovariate(per_s)
    while at < seconds:
        yield at
        at += chance.expovariate(per_s)


async def open_loop(
    callers: Sequence[CallerFunction], times: Iterator[float], seconds: float, deadline: float
) -> Open:
    """Send calls at the given times and return when all of them have ended.

    Args:
        callers: the callers, which take turns.
        times: times to send at, ascending, seconds from the beginning.
        seconds: duration of the loop, at least the last of the times.
        deadline: deadline of each call, seconds.
    """
    behind, began = 0.0, time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for caller, at in zip(itertools.cycle(callers), times, strict=False):
            await asyncio.sleep(began + at - time.perf_counter())
            behind = max(behind, time.perf_counter() - began - at)
            tasks.append(group.create_task(timed(caller, deadline)))
        await asyncio.sleep(began + seconds - time.perf_counter())
    return Open([task.result() for task in tasks], began, began + seconds, behind)


async def probes(caller: CallerFunction, deadline: float, limit: float) -> AsyncIterator[Call]:
    """Make sequential calls until `limit` seconds are over."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        call = await timed(caller, deadline)
        yield call
        if call.code != OK:
            await asyncio.sleep(_PROBE_PAUSE)


async def alternate(
    turns: dict[str, Callable[[], Awaitable[bytes]]], rounds: int, seed: int
) -> dict[str, list[Turn]]:
    """Return the turns of each function, in rounds that run all of them in varying order."""
    chance = random.Random(seed)
    taken: dict[str, list[Turn]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name in chance.sample(list(turns), len(turns)):
            began = time.perf_counter()
            payload = await turns[name]()
            taken[name].append(Turn(time.perf_counter() - began, payload))
    return taken
