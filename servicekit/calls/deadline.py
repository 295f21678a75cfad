"""A deadline for every call, and how much of it is left."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc

from servicekit.errors import SightlineError

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
_deadline: ContextVar[float] = ContextVar("sightline_deadline")
"""Default deadline of this call, on the loop's clock, s."""


class DefaultDeadline:
    """Guard that ends a call without a deadline after `seconds`.

    gRPC itself ends a call that has one, by cancelling the handler.
    """

    def __init__(self, seconds: float, unlimited: Collection[str] = ()) -> None:
        """Create the guard.

        Args:
            seconds: the default deadline, s, > 0.
            unlimited: full methods whose calls may last for as long as their messages come.
        """
        self._seconds = seconds
        self._unlimited = frozenset(unlimited)

    async def __call__(
        self, method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Raise SightlineError DEADLINE_EXCEEDED when the default deadline is over."""
        if context.time_remaining() is not None:
            return await proceed()
        if method in self._unlimited:
            _deadline.set(math.inf)
            return await proceed()
        _deadline.set(asyncio.get_running_loop().time() + self._seconds)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await proceed()
        except TimeoutError as error:
            if not limit.expired():  # the handler's own
                raise
            raise SightlineError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "DEADLINE_EXCEEDED",
                f"the call has no deadline and took longer than the default of {self._seconds:g} s:"
                " set a deadline",
            ) from error


def remaining(context: _Context) -> float:
    """Return the time left until the deadline, s, >= 0.

    Works only in a handler that is called through `servicekit.calls.interceptors`, which gives
    every call a deadline.
    """
    left = context.time_remaining()
    if left is None:
        left = _deadline.get() - asyncio.get_running_loop().time()
    return max(left, 0.0)
