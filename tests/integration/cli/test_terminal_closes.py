"""A terminal that is closed ends the services that it started; one without a terminal reloads."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil

from tests.integration.cli.terminal import (
    REPOSITORY,
    SIGHTLINE,
    children,
    in_terminal,
    read_until,
)

ANY_PORT = [
    word
    for name in ("ingest", "inference", "console")
    for word in (f"--{name}-listen", "127.0.0.1:0")
]


def test_closing_the_terminal_of_up_ends_the_services(tmp_path: Path) -> None:
    up = [*SIGHTLINE, "up", "--data", tmp_path / "data", "--model-repository", REPOSITORY]
    with in_terminal(*up, *ANY_PORT) as (process, terminal):
        read_until(terminal, "Ctrl-C ends all")
        services = children(process.pid)
        assert len(services) == 3
        os.close(terminal)
        assert process.wait(30) == 0
        _, alive = psutil.wait_procs(services, timeout=1)
        assert alive == []


def test_ctrl_c_lets_the_services_drain(tmp_path: Path) -> None:
    up = [*SIGHTLINE, "up", "--data", tmp_path / "data", "--model-repository", REPOSITORY]
    with in_terminal(*up, *ANY_PORT) as (process, terminal):
        read_until(terminal, "Ctrl-C ends all")
        os.write(terminal, b"\x03")
        text = read_until(terminal, "stopping all") + _rest(terminal)
        assert process.wait(30) == 0
    assert text.count("drained") == 3


def test_ctrl_c_while_up_starts_ends_it_at_once(tmp_path: Path) -> None:
    up = [*SIGHTLINE, "up", "--data", tmp_path / "data", "--model-repository", REPOSITORY]
    with in_terminal(*up, *ANY_PORT) as (process, terminal):
        read_until(terminal, "starting ingest_service")
        services = children(process.pid)
        os.write(terminal, b"\x03")
        text = _rest(terminal)
        assert process.wait(30) == 0
        assert "ready" not in text
        _, alive = psutil.wait_procs(services, timeout=1)
        assert alive == []


def test_closing_the_terminal_of_a_service_ends_it(tmp_path: Path) -> None:
    serve = [*SIGHTLINE, "serve", "inference", "--model-repository", REPOSITORY]
    with in_terminal(*serve, "--listen", "127.0.0.1:0") as (process, terminal):
        read_until(terminal, '"event": "ready"')
        os.close(terminal)
        assert process.wait(30) == 0


def test_nohup_keeps_a_service(tmp_path: Path) -> None:
    code = "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    code += "; os.execv(sys.executable, [sys.executable, '-m', 'ingest_service', *sys.argv[1:]])"
    flags = ["--database", tmp_path / "a.duckdb", "--listen", "127.0.0.1:0"]
    with in_terminal(sys.executable, "-c", code, *flags) as (process, terminal):
        read_until(terminal, '"event": "ready"')
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def _rest(terminal: int) -> str:
    """Return what a terminal shows until its program has ended."""
    text = ""
    try:
        while part := os.read(terminal, 4096):
            text += part.decode(errors="replace")
    except OSError:  # the other end is closed
        pass
    return text
