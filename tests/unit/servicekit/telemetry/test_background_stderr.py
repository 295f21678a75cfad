import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL = (
    "import os, sys; from servicekit.telemetry import background_stderr;"
    "background_stderr.install();"
)


def run(
    program: str, *, stderr: int, stdout: int | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", INSTALL + program]
    return subprocess.run(command, text=True, timeout=30, stdout=stdout, stderr=stderr)


def piped(program: str) -> "subprocess.CompletedProcess[str]":
    return run(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def test_what_is_written_arrives_in_order() -> None:
    done = piped("[print(i, file=sys.stderr) for i in range(1000)]; print('end', file=sys.stderr)")
    assert done.stderr.splitlines() == [*map(str, range(1000)), "end"]


def test_tracebacks_of_the_end_of_threads_and_of_destructors_arrive() -> None:
    done = piped(
        "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()\n"
        "class Bad:\n    def __del__(self): raise KeyError('gone')\n"
        "Bad(); raise ValueError('the end')"
    )
    assert done.returncode == 1
    for part in ("ZeroDivisionError", "KeyError: 'gone'", "ValueError: the end"):
        assert part in done.stderr


def test_native_code_and_children_write_to_the_same_place() -> None:
    done = piped("os.write(2, b'native\\n'); os.system('echo child >&2')")
    assert done.stderr.splitlines() == ["native", "child"]


def test_whoever_shares_the_pipe_still_waits_for_it() -> None:
    """Only our own view of it does not wait: a shell's other commands must not see EAGAIN."""
    reading, writing = os.pipe()
    assert run("pass", stderr=writing).returncode == 0
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


def test_a_pipe_that_was_made_not_to_wait_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(
        [sys.executable, "-c", INSTALL + "sys.stderr.write('x' * 1_000_000)"], stderr=writing
    )
    os.close(writing)
    with os.fdopen(reading) as stream, process:
        assert stream.read() == "x" * 1_000_000
    assert process.returncode == 0


def test_a_file_stays_what_it_is(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        done = run("print(type(sys.stderr).__name__)", stderr=log.fileno(), stdout=subprocess.PIPE)
    assert done.stdout == "TextIOWrapper\n"


def test_a_stderr_that_is_closed_is_not_the_next_file_that_is_opened(tmp_path: Path) -> None:
    program = "f = open(sys.argv[1], 'w'); print('x', file=sys.stderr); print(f.fileno())"
    command = 'exec "$0" -c "$1" "$2" 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, INSTALL + program, str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    assert int(done.stdout) > 2
    assert (tmp_path / "data").read_text() == ""


@pytest.mark.parametrize("text", ["", "ü\ud800"])
def test_odd_texts_are_written(text: str) -> None:
    done = piped(f"print({text!a}, file=sys.stderr); sys.stderr.write('')")
    assert done.stderr == text.encode("utf-8", "backslashreplace").decode() + "\n"


def test_bytes_are_refused_as_by_any_text_stream() -> None:
    done = piped("sys.stderr.write(b'x')")
    assert "TypeError: text must be a str, is bytes" in done.stderr
