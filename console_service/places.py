"""A bounded number of requests at the same time, with a bounded number that wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from servicekit.errors import SightlineError

_RETRY_SECONDS = 1.0


class RequestPlaces:
    """Places for requests that run at the same time.

    Args:
        limit: number of places, >= 0.
        waiting: number of requests that may wait for a place, >= 0.
        reason: reason of the refusal, in UPPER_SNAKE_CASE.
        description: name of the bounded thing and its setting, for the message.
    """

    def __init__(self, limit: int, waiting: int, reason: str, description: str) -> None:
        self._limit = limit
        self._waiting = waiting
        self._reason = reason
        self._description = description
        self._free = asyncio.Semaphore(limit)
        self._queued = 0
        self.taken = 0
        """Number of places that are taken."""

    @asynccontextmanager
    async def place(self, seconds: float) -> AsyncIterator[None]:
        """Hold a place while the block runs.

        Args:
            seconds: time to wait for a place, s.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED; no place was free in time.
        """
        if self._free.locked() and self._queued >= self._waiting:
            raise self._refusal()
        self._queued += 1
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self._queued -= 1
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._free.release()

    def _refusal(self) -> SightlineError:
        return SightlineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            self._reason,
            f"the console answers at most {self._limit} {self._description}",
            retry_after=_RETRY_SECONDS,
        )
