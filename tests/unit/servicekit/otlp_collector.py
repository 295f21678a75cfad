"""An OpenTelemetry collector: takes spans by OTLP over gRPC, and keeps them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Received:
    """One span as it came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty: it is a root."""
    kind: str
    begun: float
    """Unix seconds."""
    ended: float
    error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]
    trace_state: str


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keep what it gets; holds every export while `go` is not set."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.metadata: dict[str, str | bytes] = {}
        self.asked = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.endpoint = ""

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        self.asked.set()
        self.go.wait(30)
        for resource in request.resource_spans:
            known = _plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_received(span, known) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(
        self, condition: Callable[[Sequence[Received]], bool], seconds: float = 20
    ) -> None:
        """Return once the condition holds of the spans that came; raise AssertionError."""
        end = time.monotonic() + seconds
        while not condition(tuple(self.spans)):
            assert time.monotonic() < end, self.spans
            time.sleep(0.01)

    def of(self, trace_id: str) -> dict[str, Received]:
        """Return the spans of a trace by their names."""
        return {span.name: span for span in tuple(self.spans) if span.trace_id == trace_id}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of the loopback."""
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        collector.go.set()
        server.stop(None).wait()


def _received(span: trace_pb2.Span, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=trace_pb2.Span.SpanKind.Name(span.kind),
        begun=span.start_time_unix_nano / 1e9,
        ended=span.end_time_unix_nano / 1e9,
        error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_plain(span.attributes),
        resource=resource,
        trace_state=span.trace_state,
    )


def _plain(attributes: Sequence[common_pb2.KeyValue]) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes
    }
