"""Loggers, and disks that fail or hang, for tests."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.spool.spool import Spool
from tests.fakes.ingest import FakeIngest

NOWHERE = "127.0.0.1:1"
UNHURRIED = 8.0
"""Maximum duration of what a deadline below a second ends, on a machine that is busy, s."""
QUICK = LogOptions(batch_timeout_seconds=0.05)


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as service:
        yield service


def logger(folder: Path, target: str = NOWHERE, **more: Any) -> PredictionLogger:
    return PredictionLogger(target, device_id="gate-1", spool_dir=folder, options=QUICK, **more)


@contextmanager
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "append", fail)
        yield
