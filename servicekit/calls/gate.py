"""The guard that admits calls while the server is ready, and counts the running ones."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import grpc

from servicekit.errors import SightlineError
from servicekit.health import HealthService

T = TypeVar("T")
_QUIET_SECONDS = 0.02
"""Time without a call after which all calls count as handed over, s."""
_CLOSE_SECONDS = 0.5
"""Maximum time that closing takes, even if calls keep coming, s."""


class Gate:
    """Guard that refuses calls until `health` is open, and counts the running calls.

    gRPC's `Server.stop` returns when it has cancelled the calls that outlived the grace period,
    before their handlers have ended. Resources that they use must stay open until they have.

    Args:
        health: is open once warm-up is over.
        always_open: full methods that are admitted before that, such as liveness checks.
    """

    def __init__(self, health: HealthService, always_open: Collection[str] = ()) -> None:
        self._health = health
        self._always_open = frozenset(always_open)
        self._closed = False
        self._refused = 0
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def __call__(
        self,
        method: str,
        _context: grpc.aio.ServicerContext[Any, Any],
        proceed: Callable[[], Awaitable[T]],
    ) -> T:
        """Raise SightlineError UNAVAILABLE: `NOT_READY` before, `SHUTTING_DOWN` at the end."""
        if self._closed:
            self._refused += 1
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE,
                "SHUTTING_DOWN",
                "the server is shutting down: try another",
            )
        if not self._health.opened and method not in self._always_open:
            raise SightlineError(
                grpc.StatusCode.UNAVAILABLE, "NOT_READY", "the server is starting", retry_after=1.0
            )
        self._inside += 1
        self._empty.clear()
        try:
            return await proceed()
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self) -> None:
        """Refuse calls from now on, and return once all calls that have arrived are refused.

        gRPC hands calls over one by one, and `Server.stop` cancels those that are not handed over
        yet. Their callers would get CANCELLED, which does not make them try elsewhere.
        """
        self._closed = True
        end = time.monotonic() + _CLOSE_SECONDS
        before = -1
        while self._refused != before and time.monotonic() < end:
            before = self._refused
            await asyncio.sleep(_QUIET_SECONDS)

    async def empty(self) -> None:
        """Wait until no handler is running."""
        await self._empty.wait()
