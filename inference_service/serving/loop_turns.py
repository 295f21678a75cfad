"""Turns on the event loop for calls that are expensive before they are queued for the workers.

gRPC hands calls over one by one, in order of arrival. If the event loop checked a hundred calls
with many images immediately, all later calls would wait to be handed over, before their callers are
known. Calls with many images therefore wait here until the others have been handed over, which is
cheap. They then continue one at a time, callers in turn.
"""

import asyncio

from inference_service.fair_threads import RoundRobin

_PAUSE_SECONDS = 0.002  # for other calls, before one continues
_MAX_PAUSE_SECONDS = 0.025  # between two, while more arrive


class LoopTurns:
    """A gate that admits calls one at a time, callers in turn. For one event loop."""

    def __init__(self) -> None:
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()
        self._timer: asyncio.TimerHandle | None = None
        self._arrived = self._admitted = 0.0

    async def wait(self, flow: str) -> None:
        """Wait for the turn of a call of the caller with key `flow`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._timer is None and now - self._admitted >= _PAUSE_SECONDS:
            self._admitted = now
            return
        self._arrived = now
        turn = loop.create_future()
        self._waiting.put(flow, turn)
        if self._timer is None:
            self._timer = loop.call_later(_PAUSE_SECONDS, self._poll, loop)
        await turn

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        quiet = now - self._arrived >= _PAUSE_SECONDS
        if quiet or now - self._admitted >= _MAX_PAUSE_SECONDS:
            self._admit_next(now)
        self._timer = None
        if self._waiting:
            self._timer = loop.call_later(_PAUSE_SECONDS, self._poll, loop)

    def _admit_next(self, now: float) -> None:
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():  # its caller has not cancelled
                self._admitted = now
                turn.set_result(None)
                return
