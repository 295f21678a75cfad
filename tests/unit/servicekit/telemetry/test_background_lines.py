import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from servicekit.standard_streams import Descriptor
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
    assert time.monotonic() - begun < 5
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


def test_a_closed_stream_is_nobodys_fault() -> None:
    stream = io.StringIO()
    stream.close()
    lines = BackgroundLines(stream, max_waiting=10)
    lines.put("unheard")
    until(lambda: not lines._thread.is_alive())
    for _ in range(100):
        lines.put("unheard")
    assert len(lines._lines) <= 10
    lines.close()


def test_the_log_goes_on_when_the_pipe_has_a_reader_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(tmp_path / "pipe", os.O_WRONLY)
    lines = BackgroundLines(Descriptor(writing))
    os.close(reading)
    lines.put("unheard")
    until(lambda: lines._unwritten == 1)
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    lines.put("heard")
    until(lambda: "lost 1 lines of the log" in caplog.text)
    lines.close()
    assert os.read(reading, 100) == b"heard\n"
    os.close(reading)
    os.close(writing)


def test_a_torn_line_stands_alone(tmp_path: Path) -> None:
    """A process whose files may not grow writes a part of a line, and the next one later."""
    program = (
        "import os, resource as r; from servicekit.standard_streams import Descriptor\n"
        "before = r.getrlimit(r.RLIMIT_FSIZE); r.setrlimit(r.RLIMIT_FSIZE, (2, before[1]))\n"
        "out = Descriptor(1)\n"
        "try: out.write('cut\\n')\n"
        "except OSError: r.setrlimit(r.RLIMIT_FSIZE, before); out.write('next\\n')"
    )
    with (tmp_path / "out").open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, timeout=30, check=True)
    assert (tmp_path / "out").read_text() == "cu\nnext\n"


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
