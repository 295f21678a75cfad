"""Turns on the event loop, for calls that cost it much before they are in the queue of the workers.

gRPC hands calls over one by one, in the order of their arrival. If the event loop checks, and
mostly refuses, each of a hundred calls with many images at once, all later calls wait to be handed
over, before anybody knows whose they are. So calls with many images wait here until the others are
handed over, which costs little. Then they go on one at a time, callers in turn.
"""

import asyncio

from inference_service.fair_threads import RoundRobin

_PAUSE_SECONDS = 0.002  # of the event loop for others, before one goes on
_LONGEST_SECONDS = 0.025  # from one to the next at most, while more of them arrive


class LoopTurns:
    """Lets calls go on one at a time, callers in turn. For one event loop."""

    def __init__(self) -> None:
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()
        self._timer: asyncio.TimerHandle | None = None
        self._arrived = self._went_on = 0.0

    async def wait(self, flow: str) -> None:
        """Wait for the turn of a call of this caller, whose key is `flow`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._timer is None and now - self._went_on >= _PAUSE_SECONDS:
            self._went_on = now
            return
        self._arrived = now
        turn = loop.create_future()
        self._waiting.put(flow, turn)
        if self._timer is None:
            self._timer = loop.call_later(_PAUSE_SECONDS, self._look, loop)
        await turn

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        quiet = now - self._arrived >= _PAUSE_SECONDS
        if quiet or now - self._went_on >= _LONGEST_SECONDS:
            self._let_go_on(now)
        self._timer = None
        if self._waiting:
            self._timer = loop.call_later(_PAUSE_SECONDS, self._look, loop)

    def _let_go_on(self, now: float) -> None:
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():  # its caller has not given up
                self._went_on = now
                turn.set_result(None)
                return
