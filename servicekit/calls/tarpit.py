"""The guard that delays the answers of useless calls, so that a flood of them waits.

gRPC accepts a limited number of calls per connection and refuses further ones before any Python
runs. A call with a delayed answer keeps its place. So a connection that floods the server with
methods that do not exist, with bad credentials or with calls that it resets at once soon has no
place left, and costs almost nothing. Successful calls are never delayed.

Calls that a full queue refuses cost work, too: their request was read and checked. gRPC hands calls
over one by one, so a caller that ignores `retry_after` and calls again at once delays the others
before they are authenticated. Its answers are delayed by a part of the time that the call has left.
A call with little time left is answered at once, so that its caller can try elsewhere.
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
"""Useless calls of one connection per second that are answered at once."""
BURST = 50
"""Useless calls that are answered at once after a pause."""
LONGEST_SECONDS = 10.0
"""Longest delay of an answer, s."""
MAX_HELD = 8192
"""Maximum number of delayed calls; more are answered at once, because each takes some memory."""
REFUSED_BURST = 16
"""Calls of one caller that a full queue refuses at once after a pause; then `PER_SECOND`."""
HURRY_SECONDS = 1.0
"""A call with no more time left than this is refused at once, s."""
REFUSED_SHARE = 0.25
"""Share of the remaining time beyond that by which such a refusal may be delayed."""
_LATE_REASONS = frozenset({"RATE_LIMITED"})
_QUEUE_REASONS = frozenset({"QUEUE_FULL", "QUEUE_TOO_SLOW", "DEADLINE_TOO_SHORT"})
_LATE_CODES = frozenset({grpc.StatusCode.UNAUTHENTICATED})


class Tarpit:
    """Guard that delays answers: of open methods, bad credentials, early resets and refusals.

    Refusals are those of a rate limit and of a full queue.

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
        """Make the call, and delay its answer if it was useless."""
        if method in self._open_to_all:
            await self.wait(context)
            return await proceed()
        notes = call_notes.begin()
        try:
            return await proceed()
        except SightlineError as error:
            without_frames(error)  # the frames hold the request, whose memory is released already
            if error.code in _LATE_CODES or error.reason in _LATE_REASONS:
                await self.wait(context)
            elif error.reason in _QUEUE_REASONS:
                await self._wait_for_queue(context)
            raise
        except asyncio.CancelledError:
            # The caller is gone, but the call keeps its place until it returns from here.
            if "request_bytes" not in notes:
                await self.wait(context)
            raise

    async def of_all(
        self, _method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Make a call of a service that needs no credential; each one counts."""
        await self.wait(context)
        return await proceed()

    async def wait(self, context: _Context) -> None:
        """Wait for the delay of this call's connection."""
        now = self._clock()
        await self._wait(now, self._pace.delay(str(context.peer()), now))

    async def _wait_for_queue(self, context: _Context) -> None:
        """Wait for the delay of a caller that a full queue refuses, over all its connections."""
        caller = known_caller()
        longest = REFUSED_SHARE * max(deadline.remaining(context) - HURRY_SECONDS, 0.0)
        flow = str(context.peer()) if caller is None else caller.flow
        now = self._clock()
        await self._wait(now, min(self._refused_pace.delay(flow, now), longest))

    async def _wait(self, now: float, delay: float) -> None:
        if not delay or self._held >= MAX_HELD:
            return
        self._held += 1
        try:
            await self._pause(delay)
        except asyncio.CancelledError:
            # The caller is gone, but the call keeps its place.
            await self._pause(now + delay - self._clock())
            raise
        finally:
            self._held -= 1

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    def close(self) -> None:
        """Answer all delayed calls now, because the server drains."""
        self._closed.set()

    def unknown_method(self) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the handler of unknown methods: a delayed UNIMPLEMENTED."""

        async def refuse(_requests: object, context: _Context) -> None:
            await self.wait(context)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        # It reads no request, so it fits all kinds of methods.
        return grpc.stream_stream_rpc_method_handler(refuse)
