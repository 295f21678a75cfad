"""Answers calls late that cost the server work and bring it none, so that their connection waits.

gRPC takes so many calls of a connection at a time and refuses further ones before any Python runs.
A call that is answered late keeps its place. So a connection that floods the server with methods
that do not exist, with bad credentials or with calls that it resets at once soon has no place left,
and costs next to nothing. Calls that work are never answered late.

Calls that find the queue full cost work, too: their request was read and checked. All calls wait
for gRPC to hand them over one by one, so a caller that comes back at once after each refusal, and
never as late as it was told, keeps the others waiting before anybody knows who they are. It is
answered late by a part of the time that its call has left: whoever is in a hurry is told at once,
and may ask elsewhere.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import grpc

from servicekit.auth.caller import known_caller
from servicekit.calls import deadline
from servicekit.errors import SightlineError, without_frames
from servicekit.pace import Pace
from servicekit.telemetry import call_notes

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]

PER_SECOND = 25.0
"""Such calls of one connection that are answered at once, for as long as it likes."""
BURST = 50
"""Such calls that are answered at once after a rest."""
LONGEST_SECONDS = 10.0
"""Longest delay of an answer, s."""
MOST_HELD = 8192
"""Calls that wait at a time; more are answered at once, because each takes some memory."""
REFUSED_BURST = 16
"""Calls of one caller that a full queue refuses at once after a rest; then `PER_SECOND`."""
HURRY_SECONDS = 1.0
"""A call that has no more time left is told at once that the queue is full."""
REFUSED_SHARE = 0.25
"""Of the time that a call has left beyond that, by which such a refusal may be late."""
_LATE_REASONS = frozenset({"RATE_LIMITED"})
_QUEUE_REASONS = frozenset({"QUEUE_FULL", "QUEUE_TOO_SLOW", "DEADLINE_TOO_SHORT"})
_LATE_CODES = frozenset({grpc.StatusCode.UNAUTHENTICATED})


class Tarpit:
    """Guard that answers late: open methods, bad credentials, early resets, refusals.

    Refusals are those by a rate limit, and those by a full queue.

    Args:
        clock: seconds on a clock that does not go back.
        open_to_all: full methods that need no credential; each call of them counts.
    """

    def __init__(self, clock: Callable[[], float], open_to_all: Collection[str] = ()) -> None:
        self._clock = clock
        self._open_to_all = frozenset(open_to_all)
        self._pace = Pace(PER_SECOND, BURST, LONGEST_SECONDS)
        self._refused_pace = Pace(PER_SECOND, REFUSED_BURST, LONGEST_SECONDS)
        self._held = 0
        self._closed = asyncio.Event()

    async def __call__(
        self, method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Make the call, and wait where it has brought nothing."""
        if method in self._open_to_all:
            await self.wait(context)
            return await proceed()
        notes = call_notes.begin()
        try:
            return await proceed()
        except SightlineError as error:
            without_frames(error)  # they hold the request, whose room is given back already
            if error.code in _LATE_CODES or error.reason in _LATE_REASONS:
                await self.wait(context)
            elif error.reason in _QUEUE_REASONS:
                await self._wait_for_queue(context)
            raise
        except asyncio.CancelledError:
            # Its caller has gone, but the call keeps its place until it is through here.
            if "request_bytes" not in notes:
                await self.wait(context)
            raise

    async def of_all(
        self, _method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Make a call of a service that needs no credential; each of them counts."""
        await self.wait(context)
        return await proceed()

    async def wait(self, context: _Context) -> None:
        """Wait for as long as this call's connection has to."""
        now = self._clock()
        await self._wait(now, self._pace.delay(str(context.peer()), now))

    async def _wait_for_queue(self, context: _Context) -> None:
        """Wait for as long as a caller has to whose calls find no place, over any connection."""
        caller = known_caller()
        longest = REFUSED_SHARE * max(deadline.remaining(context) - HURRY_SECONDS, 0.0)
        flow = str(context.peer()) if caller is None else caller.flow
        now = self._clock()
        await self._wait(now, min(self._refused_pace.delay(flow, now), longest))

    async def _wait(self, now: float, delay: float) -> None:
        if not delay or self._held >= MOST_HELD:
            return
        self._held += 1
        try:
            await self._pause(delay)
        except asyncio.CancelledError:
            # Its caller has gone: the call keeps its place all the same.
            await self._pause(now + delay - self._clock())
            raise
        finally:
            self._held -= 1

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    def close(self) -> None:
        """Let go of every call that waits: the server drains."""
        self._closed.set()

    def unknown_method(self) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of the methods that do not exist: UNIMPLEMENTED, and late."""

        async def refuse(_requests: object, context: _Context) -> None:
            await self.wait(context)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        # It reads no request, of whichever kind the method was meant to be.
        return grpc.stream_stream_rpc_method_handler(refuse)
