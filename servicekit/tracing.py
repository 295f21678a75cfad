"""W3C trace context: the caller's trace id in every log line of the call."""

import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from structlog.contextvars import bind_contextvars

T = TypeVar("T")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def trace_id(traceparent: str) -> str | None:
    """Returns the trace id of a `traceparent`; None if it is malformed.

    The rules are those of W3C Trace Context, level 1, section 3.2: version `ff` and ids of zeros
    are invalid; version 00 has nothing after its flags, later ones may.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == "ff" or (match[1] == "00" and match[4]):
        return None
    if set(match[2]) == {"0"} or set(match[3]) == {"0"}:
        return None
    return match[2]


async def join_trace(
    _method: str, context: grpc.aio.ServicerContext[Any, Any], proceed: Callable[[], Awaitable[T]]
) -> T:
    """Guard that puts the caller's `trace_id` into the log lines of the call."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str) and (known := trace_id(value)):
            # Each call is a task of its own: what is bound here ends with it.
            bind_contextvars(trace_id=known)
    return await proceed()
