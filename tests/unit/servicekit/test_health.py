import asyncio
import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from servicekit.health import HealthService
from servicekit.telemetry import metrics_server
from servicekit.telemetry.metrics_server import MetricsServer

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
NAME = "test.v1.Echo"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@contextlib.asynccontextmanager
async def served(
    health: HealthService,
) -> AsyncIterator[tuple[Any, grpc.aio.Server]]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel), server
    await server.stop(None)


async def check(stub: Any, service: str) -> int:
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def test_live_from_the_start_and_ready_while_open() -> None:
    health = HealthService([NAME])
    async with served(health) as (stub, _):
        assert (await check(stub, ""), await check(stub, NAME)) == (SERVING, NOT_SERVING)
        health.open()
        assert (await check(stub, ""), await check(stub, NAME)) == (SERVING, SERVING)
        health.set_ready(False)
        assert (await check(stub, ""), await check(stub, NAME)) == (SERVING, NOT_SERVING)
        health.set_ready(True)
        assert await check(stub, NAME) == SERVING
        health.close()
        health.set_ready(True)
        assert (await check(stub, ""), await check(stub, NAME)) == (SERVING, NOT_SERVING)


async def test_what_warm_up_says_holds_after_it() -> None:
    health = HealthService([NAME])
    async with served(health) as (stub, _):
        health.set_ready(True)
        assert await check(stub, NAME) == NOT_SERVING
        health.set_ready(False)
        health.open()
        assert await check(stub, NAME) == NOT_SERVING


async def test_a_service_that_is_not_served_is_not_found() -> None:
    async with served(HealthService([NAME])) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(stub, "other.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_sees_each_change_and_then_the_end() -> None:
    health = HealthService([NAME])
    async with served(health) as (stub, server):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        seen = [(await watch.read()).status]
        health.open()
        seen.append((await watch.read()).status)
        health.set_ready(True)  # no change, nothing sent
        health.close()
        seen.append((await watch.read()).status)
        assert await watch.read() is EOF
        assert seen == [NOT_SERVING, SERVING, NOT_SERVING]
        async with asyncio.timeout(5):  # and does not hold up the stop for its grace
            await server.stop(60)


async def test_a_watcher_of_an_unknown_service_waits_for_it() -> None:
    health = HealthService([NAME])
    async with served(health) as (stub, _):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="other.Service"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        health.close()
        assert await watch.read() is EOF


async def test_watchers_of_a_service_do_not_wait_for_each_other() -> None:
    class Stuck:
        async def write(self, _message: object) -> None:
            await asyncio.Event().wait()

    health = HealthService([NAME])
    async with served(health) as (stub, _):
        request = health_pb2.HealthCheckRequest(service=NAME)
        stuck = asyncio.ensure_future(health.Watch(request, Stuck()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        watch = stub.Watch(request)
        assert (await watch.read()).status == NOT_SERVING
        health.open()
        assert (await watch.read()).status == SERVING
        stuck.cancel()
        health.close()


async def test_a_probe_of_a_stuck_event_loop_says_that_it_is_not_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    health = HealthService([NAME])
    health.open()
    server = MetricsServer("127.0.0.1:0", CollectorRegistry(), health.probe())
    answers = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"http://{server.address}/healthz", timeout=10) as page:
                answers.append(page.status)
        except urllib.error.HTTPError as error:
            answers.append(error.code)

    await asyncio.to_thread(ask)
    monkeypatch.setattr(metrics_server, "PROBE_SECONDS", 0.05)
    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()  # this event loop does nothing until the answer is there
    server.close()
    assert answers == [200, 503]
