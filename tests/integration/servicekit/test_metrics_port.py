"""Whoever connects to a metrics port costs neither threads nor memory (issue 11, item 6)."""

import asyncio
import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter

from servicekit.telemetry import metrics_server
from servicekit.telemetry.metrics_server import (
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    REQUEST_SECONDS,
    MetricsServer,
)
from tests.integration.servicekit.test_lifecycle import started
from tests.unit.edge.samples import eventually

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
LORIS = 500
FLOOD_ADDRESS = "127.0.0.2"
PROMPT_SECONDS = REQUEST_SECONDS - 1
"""Maximum duration of what waits for no slow connection, s: one that does is closed later."""


def scraped(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        return str(response.read().decode())


@contextlib.asynccontextmanager
async def slow(
    address: str, count: int, sent: bytes, source: str = FLOOD_ADDRESS
) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Keep connections that have sent the beginning of a request."""
    host, port = address.rsplit(":", 1)
    opened = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        writer.write(sent)
        opened.append((reader, writer))
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


@pytest.fixture
def served() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("things", "Things", registry=registry).inc(3)
    server = MetricsServer("127.0.0.1:0", registry)
    yield server
    server.close()


async def until_closed(readers: list[asyncio.StreamReader]) -> None:
    async def drained(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1 << 16):
                pass

    await asyncio.gather(*map(drained, readers))


async def test_slow_connections_cost_a_service_no_threads_and_no_memory() -> None:
    async with started("--metrics-listen", "127.0.0.1:0") as process:
        ready = await process.ready()
        address, running = str(ready["metrics_address"]), psutil.Process(int(ready["pid"]))
        await asyncio.to_thread(scraped, address)
        threads, rss = running.num_threads(), running.memory_info().rss
        async with slow(address, LORIS, REQUEST[:-2] + b"X-Long: " + b"x" * 7000):
            page = await asyncio.to_thread(scraped, address)
            assert "sightline_grpc_requests" in page
            few = threads + 2  # gRPC's own come and go
            assert eventually(lambda: running.num_threads() <= few, PROMPT_SECONDS)
            assert running.memory_info().rss - rss < 8 << 20
            assert len(running.net_connections("tcp")) < MAX_CONNECTIONS + 40


@pytest.mark.parametrize("source", [FLOOD_ADDRESS, "127.0.0.1"])
@pytest.mark.parametrize("sent", [b"", REQUEST[:10]])
async def test_others_are_answered_beside_slow_connections(
    served: MetricsServer, sent: bytes, source: str
) -> None:
    threads = threading.active_count()
    async with slow(served.address, LORIS, sent, source):
        began = time.monotonic()
        page = await asyncio.to_thread(scraped, served.address)
        assert "things_total 3.0" in page
        assert time.monotonic() - began < PROMPT_SECONDS
        assert threading.active_count() <= threads + 1  # that of `to_thread`


async def test_a_request_that_does_not_come_is_given_up(
    served: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_SECONDS", 0.2)
    async with slow(served.address, 3, REQUEST[:10]) as readers, asyncio.timeout(30):
        await until_closed(readers)


async def test_an_answer_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "ANSWER_SECONDS", 2.0)
    registry = CollectorRegistry()
    many = Counter("things", "Things", ["name"], registry=registry)
    for number in range(20_000):
        many.labels("x" * 150 + str(number))
    server = MetricsServer("127.0.0.1:0", registry)
    host, port = server.address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(REQUEST)
            page = await asyncio.to_thread(scraped, server.address)  # after the other's
            await asyncio.sleep(3)
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while received := client.recv(1 << 20):
                    got += len(received)
    finally:
        server.close()
    assert got < len(page)


async def test_a_request_without_end_is_refused(served: MetricsServer) -> None:
    sent = REQUEST[:-2] + b"X: " + b"x" * 2 * MAX_REQUEST_BYTES
    async with slow(served.address, 1, sent) as (reader,):
        async with asyncio.timeout(30):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")


async def test_pages_without_end_are_paced_by_address(served: MetricsServer) -> None:
    async with slow(served.address, MAX_CONNECTIONS - 4, REQUEST) as readers:
        began = time.monotonic()
        await asyncio.to_thread(scraped, served.address)
        took = time.monotonic() - began
        async with asyncio.timeout(60):
            await until_closed(readers)
        pages = time.monotonic() - began
        assert pages > 2
        assert took < pages / 2, "another address waited for the pages of this one"


def test_closing_does_not_wait_for_slow_connections() -> None:
    server = MetricsServer("127.0.0.1:0", CollectorRegistry())
    host, port = server.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection((host, int(port))))
        began = time.monotonic()
        server.close()
        server.close()
    assert time.monotonic() - began < PROMPT_SECONDS
