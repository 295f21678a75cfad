"""Tests without a process of their own; the rest is in tests/integration/servicekit."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from servicekit.health import HealthService
from servicekit.lifecycle import Readiness, Service, StartError, run, serve
from servicekit.server_settings import ServerSettings
from servicekit.settings import SettingsError
from tests.unit.servicekit.echo import ECHO, Echo, call


class Settings(ServerSettings):
    part: ClassVar[str] = "ingest"


async def nothing(*_arguments: object) -> None:
    """Serve as any hook."""


class Log:
    """Hooks that note that they were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def hook(self, name: str) -> Callable[..., Awaitable[None]]:
        async def note(*_arguments: object) -> None:
            self.calls.append(name)

        return note


@contextlib.asynccontextmanager
async def served(
    capsys: pytest.CaptureFixture[str], settings: Settings, **hooks: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, asyncio.Task[None]]]:
    serving = asyncio.ensure_future(
        serve(
            settings,
            [Service(ECHO, Echo(nothing).register)],
            name="echo",
            registry=CollectorRegistry(),
            **{"start": nothing, "stop": nothing, **hooks},
        )
    )
    line = ""
    async with asyncio.timeout(10):
        while not line and not serving.done():
            await asyncio.sleep(0.01)
            line = capsys.readouterr().out
    address = json.loads(line)["address"]
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel, serving
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_cancelling_drains_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    hooks = {name: log.hook(name) for name in ("start", "drain", "stop")}
    async with served(capsys, Settings(), **hooks) as (channel, serving):
        assert await call(channel, "UnaryUnary") == [b"a"]
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert log.calls == ["start", "drain", "stop"]


async def test_a_services_options_beat_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    options = [("grpc.max_receive_message_length", 2048)]
    async with served(capsys, Settings(max_message_bytes=1024), options=options) as (channel, _):
        with pytest.raises(grpc.aio.AioRpcError, match=r"1025 vs\. 1024"):
            await call(channel, "UnaryUnary", (b"x" * 1025,))  # comes in, cannot go out
        with pytest.raises(grpc.aio.AioRpcError, match=r"2049 vs\. 2048"):
            await call(channel, "UnaryUnary", (b"x" * 2049,))


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_drain_that_fails_or_lasts_keeps_nothing_from_stop(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    async def drain() -> None:
        await asyncio.sleep(seconds)
        raise RuntimeError("no way")

    log = Log()
    settings = Settings(grace_seconds=0.1)
    async with served(capsys, settings, drain=drain, stop=log.hook("stop")):
        pass
    assert log.calls == ["stop"]
    assert ("drain failed" if seconds == 0 else "drain did not end within 0.1 s") in caplog.messages


async def test_what_start_sets_is_what_ready_means(capsys: pytest.CaptureFixture[str]) -> None:
    async def start(readiness: Readiness) -> None:
        readiness.set(False)

    async with served(capsys, Settings(), start=start) as (channel, _):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        response = await stub.Check(health_pb2.HealthCheckRequest(service=ECHO))
        assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await call(channel, "UnaryUnary") == [b"a"]  # it decides for itself what it can do


def test_readiness_outlives_its_server() -> None:
    async def make() -> Readiness:
        return Readiness(HealthService([ECHO]))

    readiness = asyncio.run(make())
    readiness.set(False)  # as a worker thread may, when the loop is gone already


async def test_start_may_refuse_in_its_own_words(caplog: pytest.LogCaptureFixture) -> None:
    for error in (StartError("models/a: no such file"), SettingsError("models: must be a folder")):

        async def start(_readiness: Readiness, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            await serve(
                Settings(),
                [],
                name="echo",
                start=start,
                stop=nothing,
                registry=CollectorRegistry(),
            )
        assert caught.value is error


async def test_the_cause_of_a_failed_start_is_in_the_debug_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def start(_readiness: Readiness) -> None:
        raise KeyError("w0")

    with caplog.at_level(logging.DEBUG, "servicekit"), pytest.raises(StartError, match="w0"):
        await serve(
            Settings(), [], name="echo", start=start, stop=nothing, registry=CollectorRegistry()
        )
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (StartError("port taken"), 1, "echo: port taken\n"),
        (SettingsError("listen: wrong"), 2, "echo: listen: wrong\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_run_answers_with_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int, said: str
) -> None:
    async def main() -> None:
        if error is not None:
            raise error

    assert run(main, prog="echo") == code
    assert capsys.readouterr().err == said
