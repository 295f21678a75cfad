import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from servicekit.telemetry import failures_once
from servicekit.telemetry.failures_once import FailuresOnce


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(failures_once, "time", made)
    return made


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> Iterator[logging.Logger]:
    made = logging.getLogger("tests.store")
    made.setLevel(logging.INFO)
    made.propagate = False
    handler = FailuresOnce(stream)
    made.addHandler(handler)
    yield made
    made.handlers.clear()
    handler.close()


def fail(logger: logging.Logger, text: str, *arguments: object) -> None:
    try:
        Path("/nowhere/at/all").read_text()
    except OSError:
        logger.exception(text, *arguments)


def test_a_failure_has_its_traceback_once_and_its_count_a_minute_later(
    logger: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    for _ in range(8):
        fail(logger, "the store failed")
    assert stream.getvalue().count("Traceback") == stream.getvalue().count("the store failed") == 1
    clock.now = 61.0
    logger.info("anything")
    assert "the store failed (7 times more)" in stream.getvalue()
    fail(logger, "the store failed")
    assert stream.getvalue().count("Traceback") == 2


def test_the_end_tells_the_count(logger: logging.Logger, stream: io.StringIO, clock: Clock) -> None:
    for _ in range(3):
        logger.warning("slow")
    logger.handlers[0].close()
    assert stream.getvalue().splitlines() == ["slow", "slow (2 times more)"]


def test_texts_that_differ_are_all_written_with_one_traceback(
    logger: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    for number in range(5):
        fail(logger, "unforeseen error %d", number)
    assert stream.getvalue().count("unforeseen error") == 5
    assert stream.getvalue().count("Traceback") == 1


def test_another_kind_of_error_has_its_own_traceback(
    logger: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    fail(logger, "try %d", 1)
    logger.error("try %d", 2, exc_info=ValueError("x"))
    assert "FileNotFoundError" in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def test_what_is_no_failure_is_written_each_time(
    logger: logging.Logger, stream: io.StringIO, clock: Clock
) -> None:
    for _ in range(3):
        logger.info("draining")
    assert stream.getvalue() == "draining\n" * 3


def test_other_handlers_see_each_record_whole(
    logger: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logger.addHandler(caplog.handler)
    for _ in range(3):
        fail(logger, "the store failed")
    assert caplog.text.count("Traceback") == 3


def test_a_text_that_does_not_fit_its_arguments_is_the_handlers_affair(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, handled = FailuresOnce(stream), list[logging.LogRecord]()
    monkeypatch.setattr(handler, "handleError", handled.append)
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%d of them", ("many",), None)
    handler.handle(record)
    handler.close()
    assert handled == [record]
