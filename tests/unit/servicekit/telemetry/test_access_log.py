import asyncio
import contextlib
import io
import json
import logging
import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from prometheus_client import CollectorRegistry

from servicekit.auth.caller import ALL_DEVICES, ALL_SCOPES, Caller, Proof, set_caller
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.budgets import MemoryBudgets
from servicekit.calls.gate import Gate
from servicekit.calls.interceptors import GuardInterceptor, server_interceptor
from servicekit.calls.status import report_errors
from servicekit.errors import SightlineError
from servicekit.health import HealthService
from servicekit.server_settings import ServerSettings
from servicekit.telemetry import access_log, call_notes, logs
from servicekit.telemetry.access_log import JsonLines, log_access
from servicekit.telemetry.call_notes import Fact
from servicekit.telemetry.tracing import join_trace
from tests.unit.servicekit.echo import ECHO, Act, Context, call, serving, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)


class EchoSettings(ServerSettings):
    part: ClassVar[str] = "ingest"


class Log:
    """The lines that were written so far."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    async def one(self) -> dict[str, Any]:
        """Return the one line, once it is there."""
        await until(lambda: len(self.lines) == 1)
        return self.lines[0]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = Log()
    monkeypatch.setattr(logging.getLogger("access"), "level", logging.INFO)
    access_log.write_json(JsonLines(made.stream, "ingest"))
    yield made
    access_log.write_json(None)


@contextlib.asynccontextmanager
async def logged(act: Act) -> AsyncIterator[grpc.aio.Channel]:
    guards = [join_trace, log_access, report_errors]
    interceptor = GuardInterceptor(
        [ECHO], guards, lambda _method, size, _first: call_notes.add("request_bytes", size)
    )
    async with (
        serving(act, [interceptor]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield channel


async def test_a_line_says_who_asked_what_and_how_it_went(log: Log) -> None:
    async def act(_context: Context) -> None:
        set_caller(Caller("gate-1", Proof.API_KEY, ALL_DEVICES, ALL_SCOPES))
        call_notes.note(model="plates", queue_ms=1.5)
        await asyncio.sleep(0.02)

    async with logged(act) as channel:
        await call(channel, "UnaryUnary", (b"four",), metadata=PARENT)
        line = await log.one()
    age = datetime.now(UTC) - datetime.fromisoformat(line.pop("timestamp"))
    assert timedelta(0) <= age < timedelta(seconds=10)
    assert line.pop("peer").startswith("127.0.0.1:")
    assert 20 <= line.pop("duration_ms") < 5000
    assert line == {
        "level": "info",
        "logger": "access",
        "event": "call",
        "service": "ingest",
        "trace_id": TRACE,
        "method": f"{ECHO}/UnaryUnary",
        "code": "OK",
        "caller": "api_key:gate-1",
        "request_bytes": 4,
        "response_bytes": 4,
        "model": "plates",
        "queue_ms": 1.5,
    }


async def test_a_failure_says_its_reason_and_never_its_message(log: Log) -> None:
    async def refuse(_context: Context) -> None:
        raise SightlineError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no model 'x'")

    async with logged(refuse) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, "UnaryUnary")
        line = await log.one()
    assert (line["code"], line["reason"], line["caller"]) == (
        "NOT_FOUND",
        "MODEL_NOT_FOUND",
        "none",
    )
    assert "no model" not in log.stream.getvalue()


async def test_calls_do_not_share_notes(log: Log) -> None:
    numbers = iter(range(10))

    async def act(_context: Context) -> None:
        call_notes.note(**{f"only_{next(numbers)}": True})

    async with logged(act) as channel:
        for _ in range(2):
            await call(channel, "UnaryUnary")
        await until(lambda: len(log.lines) == 2)
    assert [[k for k in line if k.startswith("only")] for line in log.lines] == [
        ["only_0"],
        ["only_1"],
    ]


async def test_what_tasks_of_a_call_note_is_the_calls(log: Log) -> None:
    async def act(_context: Context) -> None:
        async def note() -> None:
            call_notes.note(model="plates")

        await asyncio.create_task(note())

    async with logged(act) as channel:
        await call(channel, "UnaryUnary")
        assert (await log.one())["model"] == "plates"


async def test_every_kind_of_call_has_one_line(log: Log, kind: str) -> None:
    async def nothing(_context: Context) -> None:
        pass

    async with logged(nothing) as channel:
        await call(channel, kind, (b"a", b"bc"))
        line = await log.one()
    assert line["method"] == f"{ECHO}/{kind}"
    assert line["request_bytes"] == (3 if kind.startswith("Stream") else 1)


async def test_a_call_that_its_caller_gave_up_has_its_line(log: Log) -> None:
    running = asyncio.Event()

    async def hang(_context: Context) -> None:
        running.set()
        await asyncio.sleep(30)

    async with logged(hang) as channel:
        ongoing = asyncio.ensure_future(call(channel, "UnaryUnary"))
        await running.wait()
        ongoing.cancel()
        assert (await log.one())["code"] == "CANCELLED"


async def test_nothing_is_logged_below_the_level(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_context: Context) -> None:
        pass

    logger = logging.getLogger("access")
    logger.setLevel(logging.WARNING)
    async with logged(nothing) as channel:
        await call(channel, "UnaryUnary")
        logger.setLevel(logging.INFO)
        await call(channel, "StreamUnary")
        assert (await log.one())["method"].endswith("StreamUnary")


def test_odd_facts_make_one_line_all_the_same() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream, "ingest")
    odd: dict[str, Fact] = {"a": 'quote " and \n line', "b": "\ud800", "c": math.nan, "d": "ü"}
    lines.put(odd)
    lines.close()
    (line,) = stream.getvalue().splitlines()
    parsed = json.loads(line)
    assert (parsed["a"], parsed["b"], parsed["d"]) == (odd["a"], odd["b"], "ü")


def test_timestamps_go_on_over_the_second() -> None:
    lines = JsonLines(io.StringIO(), "ingest")
    at = 1_700_000_000 * 10**9
    assert lines._timestamp(at + 999_999_999) == "2023-11-14T22:13:20.999999Z"
    assert lines._timestamp(at + 10**9) == "2023-11-14T22:13:21.000000Z"
    assert lines._timestamp(at + 1000) == "2023-11-14T22:13:20.000001Z"
    lines.close()


async def test_people_get_the_same_fields(
    capsys: pytest.CaptureFixture[str], restore_root: None
) -> None:
    async def nothing(_context: Context) -> None:
        pass

    logs.configure("info", "console", service="ingest")
    async with logged(nothing) as channel:
        await call(channel, "UnaryUnary")
    text = ""
    async with asyncio.timeout(5):
        while "code=OK" not in text:
            text += capsys.readouterr().err
            await asyncio.sleep(0.01)
    assert f"method={ECHO}/UnaryUnary" in text
    assert "fields" not in text


@pytest.mark.parametrize("on", [True, False])
def test_it_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    monkeypatch.chdir(tmp_path)
    health = HealthService([ECHO])
    settings, rooms = EchoSettings(access_log=on), MemoryBudgets(BudgetBounds(100, 10), ())
    made = server_interceptor([ECHO], {}, settings, Gate(health), CollectorRegistry(), rooms.of)
    assert (log_access in made._guards) is on
