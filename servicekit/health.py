"""`grpc.health.v1.Health`: `""` is liveness, a service's full name its readiness.

It replaces grpcio-health-checking's servicer, whose `Watch` holds a lock while it writes, so that
one stuck watcher blocks every change of status, and never ends, so that each watcher delays a drain
by the whole grace period. The messages and the generated base class are that package's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servicekit import about

_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]


class HealthService(health_pb2_grpc.HealthServicer):
    """The health service of one server. Call its methods in the event loop's thread.

    A service is SERVING while the server is open, not closing and set ready.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._open = False
        self._closing = False
        self._ready = True
        self._changed = asyncio.Event()

    @property
    def opened(self) -> bool:
        """True once warm-up is over, when calls of the services are admitted."""
        return self._open

    def open(self) -> None:
        """Report that warm-up is over."""
        self._open = True
        self._wake()

    def set_ready(self, ready: bool) -> None:
        """Report whether the services can do their work now."""
        self._ready = ready
        self._wake()

    def not_ready(self) -> list[str]:
        """Return the names of the services that are NOT_SERVING, sorted."""
        return sorted(name for name in self._names if self._status(name) != _Status.SERVING)

    def probe(self) -> Callable[[], Awaitable[list[str]]]:
        """Return a function for another event loop that asks this one what is NOT_SERVING.

        While this event loop is stuck, no answer comes, as from gRPC's own checks.
        """
        loop = asyncio.get_running_loop()

        async def not_ready() -> list[str]:
            return self.not_ready()

        return lambda: asyncio.wrap_future(asyncio.run_coroutine_threadsafe(not_ready(), loop))

    def close(self) -> None:
        """Report NOT_SERVING from now on, and end the calls of all watchers."""
        self._closing = True
        self._wake()

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of one service; NOT_FOUND for a service that is not served here.

        The trailing metadata (`servicekit.about`) has the server's time and version.
        """
        context.set_trailing_metadata(about.of_this_server())
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service is not served here")
        return _Status(status=status)

    async def Watch(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        """Send one service's status now and at each change, until the server drains."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            closing = self._closing
            if status != last:
                await context.write(_Status(status=status))
            if closing:
                return
            last = status
            await changed.wait()

    def _status(self, service: str) -> Literal[1, 2, 3]:
        if service == "":
            return _Status.SERVING
        if service not in self._names:
            return _Status.SERVICE_UNKNOWN
        serving = self._open and self._ready and not self._closing
        return _Status.SERVING if serving else _Status.NOT_SERVING

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
