import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from servicekit.auth.caller import ALL_DEVICES, ALL_SCOPES, Caller, Proof, set_caller
from servicekit.calls.interceptors import GuardInterceptor
from servicekit.calls.status import report_errors
from servicekit.errors import SightlineError
from servicekit.telemetry.metrics import CallMetrics
from servicekit.telemetry.metrics_server import MetricsServer
from tests.unit.servicekit.echo import ECHO, Act, Context, call, serving, until


@contextlib.asynccontextmanager
async def measured(act: Act, registry: CollectorRegistry) -> AsyncIterator[grpc.aio.Channel]:
    interceptor = GuardInterceptor([ECHO], [CallMetrics(registry), report_errors])
    async with (
        serving(act, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield channel


def count(registry: CollectorRegistry, code: str, method: str = "UnaryUnary") -> float | None:
    labels = {"service": ECHO, "method": method, "code": code, "caller": "none"}
    return registry.get_sample_value("sightline_grpc_requests_total", labels)


def sample(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name, {"service": ECHO, "method": "UnaryUnary"})


async def outcome(act: Act, code: str, limit: float | None = None) -> float | None:
    """Return how often the code was counted for one call that does `act`."""
    registry = CollectorRegistry()
    async with measured(act, registry) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(channel, "UnaryUnary", timeout=limit)
        await until(lambda: sample(registry, "sightline_grpc_request_seconds_count") == 1)
    assert sample(registry, "sightline_grpc_requests_in_flight") == 0
    return count(registry, code)


async def test_success_is_counted_and_timed(kind: str) -> None:
    async def nothing(_context: Context) -> None:
        assert registry.get_sample_value(
            "sightline_grpc_requests_in_flight", {"service": ECHO, "method": kind}
        )

    registry = CollectorRegistry()
    async with measured(nothing, registry) as channel:
        for _ in range(3):
            await call(channel, kind)
        await until(lambda: count(registry, "OK", kind) == 3)


async def test_errors_are_counted_by_code() -> None:
    async def refuse(_context: Context) -> None:
        raise SightlineError(grpc.StatusCode.NOT_FOUND, "NO_MODEL", "no such model")

    async def break_down(_context: Context) -> None:
        raise RuntimeError

    async def set_code(context: Context) -> None:
        context.set_code(grpc.StatusCode.DATA_LOSS)

    async def abort(context: Context) -> None:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE)

    assert await outcome(refuse, "NOT_FOUND") == 1
    assert await outcome(break_down, "INTERNAL") == 1
    assert await outcome(set_code, "DATA_LOSS") == 1
    assert await outcome(abort, "OUT_OF_RANGE") == 1


async def test_a_call_that_ran_out_of_time_is_not_called_cancelled() -> None:
    async def sleep(_context: Context) -> None:
        await asyncio.sleep(5)

    assert await outcome(sleep, "DEADLINE_EXCEEDED", limit=0.05) == 1


async def test_a_call_that_its_caller_gave_up_is_cancelled() -> None:
    registry, running = CollectorRegistry(), asyncio.Event()

    async def sleep(_context: Context) -> None:
        running.set()
        await asyncio.sleep(5)

    async with measured(sleep, registry) as channel:
        ongoing = asyncio.ensure_future(call(channel, "UnaryUnary"))
        await running.wait()
        assert sample(registry, "sightline_grpc_requests_in_flight") == 1
        ongoing.cancel()
        await until(lambda: count(registry, "CANCELLED") == 1)
    assert sample(registry, "sightline_grpc_requests_in_flight") == 0


@pytest.mark.parametrize("proof", list(Proof))
async def test_calls_are_counted_by_class_of_caller(proof: Proof) -> None:
    async def prove(_context: Context) -> None:
        set_caller(Caller("gate-1", proof, ALL_DEVICES, ALL_SCOPES))

    registry = CollectorRegistry()
    async with measured(prove, registry) as channel:
        await call(channel, "UnaryUnary")
        await until(lambda: sample(registry, "sightline_grpc_request_seconds_count") == 1)
    labels = {"service": ECHO, "method": "UnaryUnary", "code": "OK", "caller": str(proof)}
    assert registry.get_sample_value("sightline_grpc_requests_total", labels) == 1
    assert "gate-1" not in generate_latest(registry).decode()


def test_what_prometheus_reads() -> None:
    registry = CollectorRegistry()
    CallMetrics(registry)
    assert b"# TYPE sightline_grpc_requests_total counter" in generate_latest(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        CallMetrics(registry)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_metrics_are_scraped_over_http_until_closed(listen: str) -> None:
    registry = CollectorRegistry()
    CallMetrics(registry)
    try:
        server = MetricsServer(listen, registry)
    except OSError as error:
        pytest.skip(f"{listen}: {error}")
    host = listen.rpartition(":")[0]
    assert server.address.startswith(f"{host}:")
    assert not server.address.endswith(":0")
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=5) as response:
        assert "sightline_grpc_request_seconds" in response.read().decode()
    server.close()
    with pytest.raises(OSError):  # noqa: PT011 - the port is free again, however the system says it
        socket.create_connection((host.strip("[]"), int(server.address.rpartition(":")[2])), 1)


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        MetricsServer(f"127.0.0.1:{taken.getsockname()[1]}", CollectorRegistry())
