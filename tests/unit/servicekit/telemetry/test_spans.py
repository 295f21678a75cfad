import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from structlog.contextvars import get_contextvars

from servicekit.auth.caller import ALL_DEVICES, ALL_SCOPES, Caller, Proof, set_caller
from servicekit.calls.interceptors import GuardInterceptor
from servicekit.calls.status import report_errors
from servicekit.errors import SightlineError
from servicekit.telemetry import call_notes, tracing
from servicekit.telemetry.spans import Spans
from tests.unit.servicekit.echo import ECHO, Act, Context, call, serving
from tests.unit.servicekit.otlp_collector import Collector, Received, collecting

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
UNSAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
CLOSE_SECONDS = 10.0


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@contextlib.asynccontextmanager
async def traced(act: Act, spans: Spans) -> AsyncIterator[grpc.aio.Channel]:
    """Serve calls that have spans; send what is left of them at the end."""
    async with (
        serving(act, [GuardInterceptor([ECHO], [spans, report_errors])]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield channel
    await asyncio.to_thread(spans.close, CLOSE_SECONDS)


async def nothing(_context: Context) -> None:
    """Answer as most calls of these tests expect."""


async def test_a_span_is_the_child_of_the_callers(collector: Collector) -> None:
    async def act(_context: Context) -> None:
        set_caller(Caller("gate-1", Proof.JWT, ALL_DEVICES, ALL_SCOPES))
        call_notes.note(model="plates", images=2)

    before = time.time()
    metadata = (*SAMPLED, ("tracestate", "vendor=1"), ("tracestate", "other=2"))
    async with traced(act, Spans(collector.endpoint, 0.0, "ingest")) as channel:
        await call(channel, "UnaryUnary", metadata=metadata)
    (span,) = collector.spans
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert span.trace_state == "vendor=1,other=2"
    assert (span.name, span.kind) == (f"{ECHO}/UnaryUnary", "SPAN_KIND_SERVER")
    assert before <= span.begun <= span.ended <= time.time()
    assert not span.error
    assert span.attributes.pop("network.peer.port") > 0
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{ECHO}/UnaryUnary",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "sightline.caller": "jwt:gate-1",
        "sightline.model": "plates",
        "sightline.images": 2,
        "sightline.response_bytes": 1,
    }
    assert span.resource["service.name"] == "sightline-ingest"
    assert span.resource["service.version"]


async def test_log_lines_of_the_call_have_the_ids_of_its_span(collector: Collector) -> None:
    seen: list[dict[str, object]] = []

    async def act(_context: Context) -> None:
        seen.append(get_contextvars())

    async with traced(act, Spans(collector.endpoint, 1.0, "ingest")) as channel:
        await call(channel, "UnaryUnary")
        await call(channel, "UnaryUnary", metadata=SAMPLED)
    assert seen == [{"trace_id": s.trace_id, "span_id": s.span_id} for s in collector.spans]
    root, child = collector.spans
    assert root.parent_id == ""
    assert child.trace_id == TRACE


async def test_stages_are_children_with_their_own_times(collector: Collector) -> None:
    wanted: list[tuple[float, float]] = []

    async def act(_context: Context) -> None:
        assert tracing.traced()
        now = time.monotonic()
        wanted.append((time.time() - 0.5, time.time() - 0.2))
        tracing.stage("infer", now - 0.5, now - 0.2, batch=3)

    async with traced(act, Spans(collector.endpoint, 1.0, "ingest")) as channel:
        await call(channel, "UnaryUnary", metadata=SAMPLED)
    spans = collector.of(TRACE)
    infer, whole = spans["infer"], spans[f"{ECHO}/UnaryUnary"]
    assert infer.parent_id == whole.span_id
    assert infer.attributes == {"sightline.batch": 3}
    assert infer.begun == pytest.approx(wanted[0][0], abs=0.05)
    assert infer.ended == pytest.approx(wanted[0][1], abs=0.05)


@pytest.mark.parametrize(
    ("metadata", "ratio", "sent"),
    [((), 0.0, 0), ((), 1.0, 3), (SAMPLED, 0.0, 3), (UNSAMPLED, 1.0, 0)],
)
async def test_what_is_recorded(
    collector: Collector, metadata: tuple[tuple[str, str], ...], ratio: float, sent: int
) -> None:
    seen: list[bool] = []

    async def act(_context: Context) -> None:
        seen.append(tracing.traced() and "trace_id" in get_contextvars())
        assert "trace_id" in get_contextvars()  # also of those that are not recorded
        tracing.stage("infer", 0.0, 1.0)

    async with traced(act, Spans(collector.endpoint, ratio, "ingest")) as channel:
        for _ in range(3):
            await call(channel, "UnaryUnary", metadata=metadata)
    assert len([span for span in collector.spans if span.name != "infer"]) == sent
    assert len([span for span in collector.spans if span.name == "infer"]) == sent
    assert seen == [bool(sent)] * 3


async def ended_with(collector: Collector, act: Act) -> Received:
    async with traced(act, Spans(collector.endpoint, 1.0, "ingest")) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(channel, "UnaryUnary")
    (span,) = collector.spans
    return span


async def test_the_callers_mistake_is_no_error_of_the_server(collector: Collector) -> None:
    async def refuse(_context: Context) -> None:
        raise SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no model")

    span = await ended_with(collector, refuse)
    assert span.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert span.attributes["error.type"] == "MODEL_NOT_FOUND"
    assert not span.error


async def test_what_the_server_did_wrong_is_an_error(collector: Collector) -> None:
    async def break_down(_context: Context) -> None:
        raise RuntimeError("secret")

    span = await ended_with(collector, break_down)
    assert span.attributes["rpc.response.status_code"] == "INTERNAL"
    assert span.error
    assert "secret" not in str(span)


async def test_credentials_for_the_collector_come_from_the_environment(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=open%20sesame")
    await ended_with(collector, nothing)
    assert collector.metadata["x-api-key"] == "open sesame"


@pytest.mark.slow
async def test_a_collector_that_is_away_costs_calls_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # accepts, and never answers
        spans = Spans(f"http://127.0.0.1:{taken.getsockname()[1]}", 1.0, "ingest")
        async with (
            serving(nothing, [GuardInterceptor([ECHO], [spans])]) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            # More than a queue full: what does not fit is dropped.
            slowest = 0.0
            for _ in range(3000):
                begun = time.perf_counter()
                await call(channel, "UnaryUnary")
                slowest = max(slowest, time.perf_counter() - begun)
        assert slowest < 2
        begun = time.monotonic()
        await asyncio.to_thread(spans.close, 0.2)
        assert time.monotonic() - begun < 3
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR and r.exc_info]


async def test_closing_waits_for_what_is_being_sent_and_no_longer(collector: Collector) -> None:
    collector.go.clear()
    spans = Spans(collector.endpoint, 1.0, "ingest")
    async with (
        serving(nothing, [GuardInterceptor([ECHO], [spans])]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        await call(channel, "UnaryUnary")
    begun = time.monotonic()
    closing = asyncio.ensure_future(asyncio.to_thread(spans.close, 0.3))
    assert await asyncio.to_thread(collector.asked.wait, 5)
    await closing
    assert 0.3 <= time.monotonic() - begun < 3
