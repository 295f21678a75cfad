"""A server's clock and version in a health check, and a server that sends neither."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge.channel import Endpoint
from edge.commands.options import settings_with
from edge.doctor import services
from edge.doctor.finding import Finding, Level
from edge.doctor.health import INGEST, ask
from servicekit.about import TIME_KEY, VERSION_KEY, of_this_server
from servicekit.distribution import version
from servicekit.errors import SightlineError


class Server(health_pb2_grpc.HealthServicer):
    """Health of a server that says of itself what it is given."""

    def __init__(self, said: list[tuple[str, str]], status: int, known: str) -> None:
        self._said = said
        self._status = status
        self._known = known

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.service != self._known:
            context.abort(grpc.StatusCode.NOT_FOUND, "service is not served here")
        context.set_trailing_metadata(tuple(self._said))
        return health_pb2.HealthCheckResponse(status=self._status)


@contextmanager
def serving(
    said: list[tuple[str, str]] | None = None,
    status: int = health_pb2.HealthCheckResponse.NOT_SERVING,
    known: str = INGEST,
) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    said = of_this_server() if said is None else said
    health_pb2_grpc.add_HealthServicer_to_server(Server(said, status, known), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def found(target: str) -> dict[str, Finding]:
    settings = settings_with(ingest_target=target, device_id="gate-1")
    return {one.check: one for one in services.ingest(settings, 5)}


@pytest.mark.parametrize("ahead", [-100_000.0, -1_000.0, 0.0, 1_000.0, 100_000.0])
def test_the_offset_is_the_servers_clock_minus_this_one(ahead: float) -> None:
    with serving() as target:
        # `serving` fixed the server's time; this clock is moved against it.
        health = ask(Endpoint(target), INGEST, 5, lambda: time.time() - ahead)
    assert health.status == "NOT_SERVING"
    assert health.clock_offset == pytest.approx(ahead, abs=60)
    assert health.version == version()


def test_a_server_that_says_nothing_of_itself() -> None:
    with serving([]) as target:
        health = ask(Endpoint(target), INGEST, 5)
        findings = found(target)
    assert health.clock_offset is None
    assert health.version is None
    assert findings["ingest clock"].level is Level.WARNING
    assert "not checked" in findings["ingest clock"].message
    assert findings["ingest version"].level is Level.WARNING


def test_nonsense_for_a_time_is_none() -> None:
    with serving([(TIME_KEY, "yesterday")]) as target:
        assert ask(Endpoint(target), INGEST, 5).clock_offset is None


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (-7200, Level.WARNING, "ahead of"),
        (7200, Level.WARNING, "behind"),
        (-200_000, Level.FAILED, "ahead of"),
    ],
)
def test_a_clock_that_is_off(seconds: float, level: Level, words: str) -> None:
    said = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + seconds))
    with serving([(TIME_KEY, said), (VERSION_KEY, "0.1.0")]) as target:
        finding = found(target)["ingest clock"]
    assert finding.level is level
    assert words in finding.message


@pytest.mark.parametrize(
    ("server", "level"), [("9.9.9", Level.WARNING), (version(), Level.OK), ("0.1.99", Level.OK)]
)
def test_a_server_of_another_version(server: str, level: Level) -> None:
    with serving([(VERSION_KEY, server)]) as target:
        finding = found(target)["ingest version"]
    assert finding.level is level
    assert server in finding.message


def test_a_server_that_is_not_ready() -> None:
    with serving() as target:
        finding = found(target)["ingest"]
    assert finding.level is Level.FAILED
    assert "NOT_SERVING" in finding.message


def test_a_server_of_something_else() -> None:
    with serving(known="other.v1.Service") as target:
        finding = found(target)["ingest"]
        with pytest.raises(SightlineError) as caught:
            ask(Endpoint(target), INGEST, 5)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert finding.level is Level.FAILED
    assert "ingest_target" in finding.action
