"""Spans of calls and of their stages, exported by OTLP over gRPC.

It is imported only if an endpoint is configured. Spans go into a bounded queue, and a thread sends
them in batches: a slow or unreachable collector loses spans, and never delays a call.
"""

import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from structlog.contextvars import bind_contextvars

from servicekit.auth.caller import known_caller
from servicekit.distribution import version
from servicekit.routes import channel_options
from servicekit.telemetry import call_notes
from servicekit.telemetry.call_end import code_of, peer_of
from servicekit.telemetry.call_notes import Fact
from servicekit.telemetry.tracing import Parent, parent_of, set_span

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
_SERVER_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
"""Codes that make a server's span an error, as OpenTelemetry's conventions say."""
_CANCEL_SECONDS = 1.0
"""Maximum time for a cancelled export to end, s."""


class Spans:
    """Guard that makes a span for each call, as a child of the caller's.

    The log lines of the call have its `trace_id` and `span_id`, sampled or not. Notes of handlers
    become attributes `sightline.<name>`.

    Args:
        endpoint: of the collector, http://host:port or https://host:port. OpenTelemetry's
            environment variables set headers, certificates, timeouts and the size of batches.
        sample_ratio: recorded share of the traces that begin here, in [0, 1]; other traces are
            recorded if the caller records them.
        service: name of the process, such as `ingest`.
    """

    def __init__(self, endpoint: str, sample_ratio: float, service: str) -> None:
        is_plain = not endpoint.startswith("https:")
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=is_plain,
            # The headers may be a credential.
            channel_options=channel_options(  # type: ignore[arg-type]  # it says text only
                urlsplit(endpoint).netloc, plain_secret=is_plain and _has_headers()
            ),
        )
        self._processor = BatchSpanProcessor(self._exporter)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create(
                {SERVICE_NAME: f"sightline-{service}", SERVICE_VERSION: version()}
            ),
            shutdown_on_exit=False,  # `close` does it, within its time
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("sightline")

    async def __call__(
        self, method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Make a span for one call."""
        span = self._begin(method, context)
        notes = call_notes.begin()
        code = ""
        try:
            response = await proceed()
            code = code_of(context)
        except BaseException as error:
            code = code_of(context, error)
            raise
        finally:
            _end(span, code, notes)
        return response

    def close(self, seconds: float) -> None:
        """Send the remaining spans, for at most `seconds`, and end. Blocks meanwhile."""
        # The processor's own limit is 30 s, and cannot be changed.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(_CANCEL_SECONDS)

    def _begin(self, method: str, context: _Context) -> OtelSpan:
        parent = parent_of(context)
        span = self._tracer.start_span(
            method[1:],
            set_span_in_context(_remote(parent, context)) if parent else None,
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method[1:], **_peer(context)},
        )
        own = span.get_span_context()
        # Each call is a task: values that are bound here end with it.
        bind_contextvars(
            trace_id=format_trace_id(own.trace_id), span_id=format_span_id(own.span_id)
        )
        if span.is_recording():
            set_span(_CallSpan(self._tracer, span))
        return span


class _CallSpan:
    """The span of a call, for `servicekit.telemetry.tracing`."""

    def __init__(self, tracer: Tracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._context = set_span_in_context(span)

    def stage(self, name: str, begun: float, ended: float, facts: dict[str, Fact]) -> None:
        """Add a child."""
        since_epoch = time.time() - time.monotonic()
        child = self._tracer.start_span(
            name,
            self._context,
            attributes={f"sightline.{key}": fact for key, fact in facts.items()},
            start_time=int((since_epoch + begun) * 1e9),
        )
        child.end(int((since_epoch + ended) * 1e9))


def _has_headers() -> bool:
    return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}HEADERS") for name in ("", "TRACES_"))


def _remote(parent: Parent, context: _Context) -> OtelSpan:
    states = [
        str(value) for key, value in context.invocation_metadata() or () if key == "tracestate"
    ]
    return NonRecordingSpan(
        SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(parent.flags),
            trace_state=TraceState.from_header(states),
        )
    )


def _peer(context: _Context) -> dict[str, str | int]:
    """Return the attributes for the other end of a call."""
    host, _, port = peer_of(context).rpartition(":")
    if not port.isdecimal():  # a unix socket has no address on this side
        return {"network.transport": "unix"}
    return {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}


def _end(span: OtelSpan, code: str, notes: dict[str, Fact]) -> None:
    if span.is_recording():
        span.set_attributes({f"sightline.{name}": fact for name, fact in notes.items()})
        span.set_attribute("rpc.response.status_code", code)
        if caller := known_caller():
            span.set_attribute("sightline.caller", caller.identity)
        if code != "OK":
            span.set_attribute("error.type", notes.get("reason", code))
        if code in _SERVER_FAULTS:
            span.set_status(Status(StatusCode.ERROR))
    span.end()
