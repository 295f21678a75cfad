import io
import json
import logging
import sys
from typing import Any

import pytest
from structlog.contextvars import bound_contextvars

from servicekit.telemetry import logs

pytestmark = pytest.mark.usefixtures("restore_root")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(capture: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capture.readouterr().err.splitlines()]


def test_json_lines_say_who_when_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", service="ingest")
    with bound_contextvars(trace_id="abc"):
        logging.getLogger("some.library").warning("disk is %d %% full", 91, extra={"disk": "sda"})
    (line,) = lines(capsys)
    timestamp = line.pop("timestamp")
    assert timestamp.endswith("Z")
    assert line == {
        "event": "disk is 91 % full",
        "level": "warning",
        "logger": "some.library",
        "service": "ingest",
        "trace_id": "abc",
        "disk": "sda",
    }


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", service="ingest")
    logging.getLogger("x").error("failed", exc_info=RuntimeError("lost"))
    (line,) = lines(capsys)
    assert "RuntimeError: lost" in line["exception"]


def test_what_json_does_not_know_is_logged_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", service="ingest")
    logging.getLogger("x").info("odd", extra={"blob": b"\xff", "what": object()})
    (line,) = lines(capsys)
    assert line["event"] == "odd"
    assert "xff" in line["blob"]


def test_levels_below_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json", service="ingest")
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").error("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", service="a")
    logs.configure("info", "json", service="b")
    logging.getLogger("x").info("once")
    assert [line["service"] for line in lines(capsys)] == ["b"]


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
def test_a_terminal_gets_text_for_people(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, is_json: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("info", service="ingest")
    logging.getLogger("x").info("hello")
    assert "hello" in stream.getvalue()
    assert stream.getvalue().startswith("{") is is_json
