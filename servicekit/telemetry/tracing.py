"""W3C trace context: the caller's trace in every log line of a call and in its span.

`servicekit.telemetry.spans` makes the spans. It needs OpenTelemetry and is imported only if spans
are exported; otherwise `stage` costs nothing.
"""

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from structlog.contextvars import bind_contextvars

from servicekit.telemetry.call_notes import Fact

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's span."""

    trace_id: str
    """32 lower-case hexadecimal digits."""
    span_id: str
    """16 lower-case hexadecimal digits."""
    flags: int
    """Bit 0: the caller may have recorded it."""


class Span(Protocol):
    """The span of a call."""

    def stage(self, name: str, begun: float, ended: float, facts: dict[str, Fact]) -> None:
        """Add a child, with times on `time.monotonic`, s."""


_span: ContextVar[Span | None] = ContextVar("sightline_span", default=None)


def parse(traceparent: str) -> Parent | None:
    """Return the parent of a `traceparent`; None if it is malformed.

    The rules are those of W3C Trace Context, level 1, section 3.2: version `ff` and ids of zeros
    are invalid; version 00 has nothing after its flags, later ones may.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    if set(match[2]) == {"0"} or set(match[3]) == {"0"}:
        return None
    return Parent(match[2], match[3], int(match[4], 16))


def trace_id(traceparent: str) -> str | None:
    """Return the trace id of a `traceparent`; None if it is malformed."""
    parent = parse(traceparent)
    return parent.trace_id if parent else None


def parent_of(context: _Context) -> Parent | None:
    """Return the caller's span; None: the call has no well-formed `traceparent`."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str) and (parent := parse(value)):
            return parent
    return None


async def join_trace(_method: str, context: _Context, proceed: Callable[[], Awaitable[T]]) -> T:
    """Guard that puts the caller's `trace_id` into the log lines of the call."""
    if parent := parent_of(context):
        # Each call is a task: values that are bound here end with it.
        bind_contextvars(trace_id=parent.trace_id)
    return await proceed()


def set_span(span: Span) -> None:
    """Set the span of this call, until the call's task ends."""
    _span.set(span)


def traced() -> bool:
    """Return True if the stages of this call are recorded."""
    return _span.get() is not None


def stage(name: str, begun: float, ended: float, **facts: Fact) -> None:
    """Add a stage to the span of this call. Do nothing if the call is not traced.

    Args:
        name: such as `infer`.
        begun: on `time.monotonic`, s.
        ended: on `time.monotonic`, s; not before it has begun.
        facts: attributes of the stage.
    """
    span = _span.get()
    if span is not None:
        span.stage(name, begun, ended, facts)
