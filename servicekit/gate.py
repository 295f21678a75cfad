"""Guard that lets calls in once the server is warm, and knows when the last one is out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from servicekit.errors import SightlineError
from servicekit.health import Health

T = TypeVar("T")


class Gate:
    """Refuses calls until `health` is open and counts those inside.

    gRPC's own `Server.stop` returns when it has cancelled the calls that outlived the grace, before
    their handlers have noticed; what they use must not be closed until they are through.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def __call__(
        self,
        _method: str,
        _context: grpc.aio.ServicerContext[Any, Any],
        proceed: Callable[[], Awaitable[T]],
    ) -> T:
        """Raises SightlineError UNAVAILABLE, `NOT_READY`, while the server is starting."""
        if not self._health.opened:
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

    async def empty(self) -> None:
        """Waits until no handler is running."""
        await self._empty.wait()
