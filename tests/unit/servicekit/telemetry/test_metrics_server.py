"""The answers of the metrics server. Its sockets are an integration test."""

import asyncio
import gzip
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from servicekit.telemetry import metrics_server
from servicekit.telemetry.metrics_server import parse, probed, response, to_close


def app() -> Any:
    registry = CollectorRegistry()
    Counter("things", "Things", registry=registry).inc(3)
    return make_wsgi_app(registry)


def ask(request: str, answering: Any = None) -> tuple[str, bytes]:
    """Return the head and the body of the answer."""
    answer = response(answering or app(), request.encode("latin-1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}" in head.decode()
    assert "Connection: close" in head.decode()
    return head.decode(), body


def test_a_request_is_read() -> None:
    environ = parse(
        b"GET /metrics?name[]=a&b HTTP/1.1\r\nAccept: x\r\naccept-encoding:gzip\r\n\r\n"
    )
    assert environ == {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/metrics",
        "QUERY_STRING": "name[]=a&b",
        "HTTP_ACCEPT": "x",
        "HTTP_ACCEPT_ENCODING": "gzip",
    }


@pytest.mark.parametrize("request_", ["", "\x16\x03\x01", "GET /", "PRI * HTTP/2.0\r\n\r\n"])
def test_what_is_not_http_is_refused(request_: str) -> None:
    assert ask(request_)[0].startswith("HTTP/1.1 400 Bad Request\r\n")


def test_a_page_in_the_form_that_was_asked_for() -> None:
    head, body = ask("GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert b"things_total 3.0" in gzip.decompress(body)
    head, body = ask("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n")
    assert "openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


def test_another_method_is_not_allowed() -> None:
    assert ask("POST /metrics HTTP/1.1\r\n\r\n")[0].startswith("HTTP/1.1 405 ")


def test_a_collector_that_fails_is_an_error_of_the_server() -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("broken")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())
    broken = make_wsgi_app(registry)
    head, body = ask("GET /metrics HTTP/1.1\r\n\r\n", broken)
    assert head.startswith("HTTP/1.1 500 ")
    assert b"broken" not in body


def test_the_busiest_address_loses_its_oldest_that_has_not_asked() -> None:
    connections: Any = {"a": "x", "b": "y", "c": "y", "d": "y", "e": "x"}
    assert to_close(connections, set()) == "b"  # type: ignore[comparison-overlap]
    asked: Any = {"b"}
    assert to_close(connections, asked) == "c"  # type: ignore[comparison-overlap]
    everybody: Any = set(connections)
    assert to_close(connections, everybody) == "b"  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("path", "waiting", "status", "body"),
    [
        ("/healthz", ["a", "b"], "200 OK", b"live\n"),
        ("/readyz", [], "200 OK", b"ready\n"),
        ("/readyz", ["a", "b"], "503 Service Unavailable", b"not ready: a, b\n"),
        ("/healthz", None, "503 Service Unavailable", b"the probe failed: see the log\n"),
    ],
)
async def test_a_probe_names_what_is_not_ready(
    path: str, waiting: Sequence[str] | None, status: str, body: bytes
) -> None:
    async def probe() -> Sequence[str]:
        if waiting is None:
            raise RuntimeError("no")
        return waiting

    answer = await probed(probe, path)
    assert answer.startswith(f"HTTP/1.1 {status}\r\nContent-Type: text/plain".encode())
    assert answer.endswith(b"\r\n\r\n" + body)


async def test_a_probe_that_does_not_come_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "PROBE_SECONDS", 0.01)

    async def probe() -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    assert b"503 " in await probed(probe, "/healthz")
