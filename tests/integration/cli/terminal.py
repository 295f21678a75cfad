"""The `sightline` command as a process: what it prints, and how it ends."""

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.default_ports import NOBODY

ROOT = Path(__file__).parents[3]
REPOSITORY = ROOT / "models/repository"
SIGHTLINE = [sys.executable, "-c", "from sightline.cli.app import main; main()"]
Done = subprocess.CompletedProcess[str]


def environment(**settings: object) -> dict[str, str]:
    """Return an environment with these settings of a node, and no others.

    Without a target nothing is reached: at the default ports another service may be.
    """
    settings = {"ingest_target": NOBODY, "inference_target": NOBODY, **settings}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    named = {f"SIGHTLINE_EDGE_{name.upper()}": str(value) for name, value in settings.items()}
    return {**clean, "COLUMNS": "100", **named}


def sightline(*words: object, env: Mapping[str, str] | None = None) -> Done:
    """Run a command line to its end.

    Args:
        words: after `sightline`.
        env: the whole environment; None: one without any settings.
    """
    return subprocess.run(
        [*SIGHTLINE, *map(str, words)],
        env=environment() if env is None else env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def lines(output: str) -> list[Any]:
    """Return JSON lines."""
    return [json.loads(line) for line in output.splitlines()]


@contextmanager
def in_terminal(
    *words: object, env: Mapping[str, str] | None = None
) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start a command with a terminal of its own; yield it and the terminal's other end."""
    ours, theirs = pty.openpty()

    def adopt() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        list(map(str, words)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment() if env is None else env,
        preexec_fn=adopt,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        for child in children(process.pid):
            child.kill()
        process.kill()
        process.wait()


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def read_until(terminal: int, word: str) -> str:
    """Return what a terminal shows up to a word."""
    text, ends_at = "", time.monotonic() + 60
    while word not in text:
        assert time.monotonic() < ends_at, text
        if select.select([terminal], [], [], 1.0)[0]:
            text += os.read(terminal, 4096).decode(errors="replace")
    return text
