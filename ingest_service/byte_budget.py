"""A bound on bytes in flight, for coroutines of one event loop."""

import asyncio
from collections import deque


class ByteBudget:
    """Lets bytes in up to a limit, in the order in which they asked.

    More than the limit at once is let in when nothing else is: no one waits for ever.

    Args:
        limit: bytes, >= 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size: int) -> None:
        """Takes `size` bytes of the budget; waits while they do not fit."""
        if not self._waiters and self._fits(size):
            self._used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came just before the cancellation
                self._used -= size
            self._admit()
            raise

    def release(self, size: int) -> None:
        """Gives `size` bytes back."""
        self._used -= size
        self._admit()

    def _admit(self) -> None:
        while self._waiters and (self._waiters[0][1].done() or self._fits(self._waiters[0][0])):
            size, turn = self._waiters.popleft()
            if not turn.done():
                self._used += size
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._limit
