import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

import pytest

from servicekit.telemetry.background_lines import BackgroundLines


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Stuck(io.StringIO):
    """A stream that nobody reads until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.go.wait(10)
        return super().write(text)


def test_lines_are_written_in_order_and_soon() -> None:
    stream = io.StringIO()
    lines = BackgroundLines(stream)
    for i in range(1000):
        lines.put(f"line {i}")
    until(lambda: stream.getvalue().count("\n") == 1000)
    assert stream.getvalue().splitlines() == [f"line {i}" for i in range(1000)]
    lines.put("later")
    until(lambda: stream.getvalue().endswith("later\n"))
    lines.close()


def test_closing_writes_what_is_left() -> None:
    stream = io.StringIO()
    lines = BackgroundLines(stream)
    lines.put("last words")
    lines.close()
    assert stream.getvalue() == "last words\n"
    lines.close()  # harmless


def test_nobody_waits_for_a_reader_that_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stuck()
    lines = BackgroundLines(stream, max_waiting=10)
    lines.put("first")
    assert stream.reached.wait(5)
    begun = time.monotonic()
    for i in range(1000):
        lines.put(f"line {i}")
    assert time.monotonic() - begun < 1
    stream.go.set()
    until(lambda: "dropped 990 lines" in caplog.text)
    lines.close()
    assert stream.getvalue().splitlines() == ["first", *(f"line {i}" for i in range(10))]
    assert caplog.text.count("dropped") == 1


def test_closing_does_not_wait_for_ever_for_a_reader_that_is_stuck() -> None:
    stream = Stuck()
    lines = BackgroundLines(stream)
    lines.put("first")
    assert stream.reached.wait(5)
    begun = time.monotonic()
    lines.close()
    assert time.monotonic() - begun < 5
    stream.go.set()


def closed_stream() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def broken_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


@pytest.mark.parametrize("make", [closed_stream, broken_pipe])
def test_a_stream_that_is_gone_is_nobodys_fault(make: Callable[[], TextIO]) -> None:
    lines = BackgroundLines(make(), max_waiting=10)
    lines.put("unheard")
    until(lambda: not lines._thread.is_alive())
    for _ in range(100):
        lines.put("unheard")
    assert len(lines._lines) <= 10
    lines.close()


def test_an_ordinary_end_of_the_process_loses_nothing() -> None:
    program = (
        "import sys\n"
        "from servicekit.telemetry.background_lines import BackgroundLines\n"
        "BackgroundLines(sys.stderr).put('last words')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert ended.stderr == "last words\n"
