"""The logger on a disk that fails, hangs or holds garbage."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.log.logger import PredictionLogger
from edge.spool.spool import Spool
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.log.loggers import UNHURRIED, failing_disk, logger
from tests.unit.edge.log.loggers import ingest as ingest
from tests.unit.edge.samples import eventually, prediction


def test_waiting_for_the_disk(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        took = []
        for _ in range(10):
            begun = time.monotonic()
            log.log(prediction(), wait="spooled", timeout=20)
            took.append(time.monotonic() - begun)
        assert log.stats().spooled == 10
        assert min(took) < 0.04  # not 50 ms each, but what the disk takes


def test_deadlines_are_kept_while_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logger(tmp_path)
    with failing_disk(monkeypatch):
        log.log(prediction())
        begun = time.monotonic()
        assert log.flush(0.3) is False
        assert log.close(0.3) is False
        assert time.monotonic() - begun < UNHURRIED
    assert eventually(lambda: log.stats().spooled == 1)


@contextmanager
def blocked_disk(folder: Path) -> Iterator[None]:
    """Make every write to the spool hang, like a disk that stops answering."""
    with closing(sqlite3.connect(folder / "spool.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_deadlines_are_kept_while_the_disk_hangs(tmp_path: Path, ingest: FakeIngest) -> None:
    log = logger(tmp_path, ingest.target)
    with blocked_disk(tmp_path):
        for number in range(100):
            log(prediction(f"i{number}"))
        begun = time.monotonic()
        assert log.flush(0.3) is False
        assert log.flush(0.3, until="committed") is False
        with pytest.raises(TimeoutError):
            log.log(prediction("i100"), wait="spooled", timeout=0.3)
        assert log.close(0.3) is False
        assert time.monotonic() - begun < UNHURRIED
    assert eventually(lambda: log.stats().spooled == 101)


@pytest.mark.parametrize("used", [False, True])
def test_a_read_only_disk_is_refused_unless_it_holds_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    if used:
        logger(tmp_path / "spool").close(20)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", fail)
        if not used:
            with pytest.raises(OSError, match="cannot be used: Read-only file system"):
                logger(tmp_path / "spool")
            return
        log = logger(tmp_path / "spool")
    log.log(prediction())
    assert log.close(20)


def test_a_disk_that_fails_at_the_start_does_not_keep_the_node_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, calls = Path.mkdir, list[int]()

    def fail(*arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(*arguments, **more)

    monkeypatch.setattr(Path, "mkdir", fail)
    with logger(tmp_path / "spool") as log:
        log.log(prediction())
        assert log.stats().spool_id == ""
        assert log.flush(20)
        assert log.stats().spooled == 1


def test_flush_says_false_for_what_the_disk_did_not_take(
    tmp_path: Path, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    log = PredictionLogger(ingest.target, device_id="gate-1", spool_dir=tmp_path)
    log.log(prediction("0"), wait="spooled", timeout=20)
    assert log.flush(20)
    with monkeypatch.context() as patch:
        patch.setattr(log._pipeline._writer, "_patience_seconds", 0.0)
        patch.setattr(Spool, "append", fail)
        log.log(prediction("1"))
        assert eventually(lambda: log.stats().dropped == {"spool_write_failed": 1})
        assert not log.flush(0.1), "it was not in time either"
    assert not log.flush(20), "it is declared by now, but it is gone"
    log.log(prediction("2"))
    assert log.flush(20), "what was dropped is told once"
    assert not log.flush(20, until="committed")
    assert log.flush(20, until="committed")
    assert log.close(20)
    assert ingest.images() == ["0", "2"]


def test_close_says_false_for_what_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    log = logger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(log._pipeline._writer, "_patience_seconds", 0.0)
        patch.setattr(Spool, "append", fail)
        log.log(prediction())
        assert eventually(lambda: log.stats().dropped == {"spool_write_failed": 1})
    assert not asyncio.run(log.aclose(20))


def test_garbage_in_the_folder_does_not_keep_the_node_from_starting(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(os.urandom(10_000))
    with logger(tmp_path) as log:
        log.log(prediction(), wait="spooled", timeout=20)
        assert log.stats().damaged_spools == 1


@pytest.mark.slow
def test_a_process_that_ends_while_the_disk_hangs_ends_and_keeps_what_is_spooled(
    tmp_path: Path,
) -> None:
    script = (
        "import sqlite3, sys; from sightline import Prediction, PredictionLogger;"
        "log = PredictionLogger('127.0.0.1:1', device_id='gate-1', spool_dir=sys.argv[1]);"
        "[log(Prediction(str(n), 'm')) for n in range(100)];"
        "assert log.flush(30);"
        "other = sqlite3.connect(sys.argv[1] + '/spool.db', isolation_level=None);"
        "other.execute('BEGIN IMMEDIATE');"
        "[log(Prediction(str(n), 'm')) for n in range(100, 200)];"
        "print('ends', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ends\n"
        begun = time.monotonic()
        process.wait(30)
        assert time.monotonic() - begun < 10
    with logger(tmp_path) as log:
        assert log.stats().backlog >= 100
