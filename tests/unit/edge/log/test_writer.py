import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.log.record_buffer import RecordBuffer
from edge.log.writer import Writer
from edge.options import OnFull
from edge.records import Prediction
from edge.ship.progress import Progress
from edge.spool.caps import SpoolLimits
from edge.spool.entries import Dropped, Entry, Gap, GapReason
from edge.spool.spool import Spool
from tests.unit.edge.samples import eventually


class Disk:
    """A spool whose disk fails when the test says so."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.spool = Spool(folder, "gate-1", SpoolLimits(1 << 40, 0.0, 0), progress.lost)
        self.groups: list[int] = []
        self.failing: Exception | None = None
        self.attempts = 0
        append = self.spool.append

        def perhaps(entries: Sequence[bytes | Dropped]) -> None:
            self.attempts += 1
            if self.failing is not None:
                raise self.failing
            self.groups.append(len(entries))
            append(entries)

        self.spool.append = perhaps  # type: ignore[method-assign]

    def entries(self) -> list[Entry]:
        identity = self.spool.identity
        return self.spool.read(identity.spool_id, identity.acknowledged, 1 << 20, 1 << 30)

    def names(self) -> list[str]:
        return [
            f"{e.first}-{e.last} {e.reason.name}" if isinstance(e, Gap) else str(e.sequence)
            for e in self.entries()
        ]


class Rig(NamedTuple):
    buffer: RecordBuffer
    disk: Disk
    progress: Progress
    writer: Writer


@contextmanager
def writing(
    folder: Path, on_full: OnFull = "block", limit: int = 1000, patience_seconds: float = 60.0
) -> Iterator[Rig]:
    progress = Progress()
    disk = Disk(folder, progress)
    writer: Writer
    buffer = RecordBuffer(
        on_full, limit, 1 << 30, on_first=lambda: writer.wake(), on_half=lambda: writer.hurry()
    )
    writer = Writer(buffer, lambda: disk.spool, progress, patience_seconds)
    thread = threading.Thread(target=writer.run, daemon=True)
    thread.start()
    try:
        yield Rig(buffer, disk, progress, writer)
    finally:
        disk.failing = None
        buffer.close()
        writer.stop()
        thread.join(20)
        assert not thread.is_alive()
        disk.spool.close()


def spooled(progress: Progress, count: int) -> bool:
    return eventually(lambda: progress.spooled >= count)


def test_what_is_logged_within_50_ms_is_one_transaction(tmp_path: Path) -> None:
    with writing(tmp_path) as rig:
        begun = time.monotonic()
        for number in range(60):
            rig.buffer.put(Prediction(str(number), "m"))
            time.sleep(0.001)
        took = time.monotonic() - begun
        assert spooled(rig.progress, 60)
        assert len(rig.disk.groups) <= took / 0.05 + 2
        assert rig.disk.names() == [str(n) for n in range(1, 61)]


def test_a_lonely_prediction_waits_50_ms_at_most(tmp_path: Path) -> None:
    with writing(tmp_path) as rig:
        took = []
        for number in range(5):
            begun = time.monotonic()
            rig.buffer.put(Prediction("lonely", "m"))
            assert spooled(rig.progress, number + 1)
            took.append(time.monotonic() - begun)
        assert min(took) < 0.3  # a busy machine may be slow at times


def test_who_hurries_waits_for_no_company(tmp_path: Path) -> None:
    with writing(tmp_path) as rig:
        took = []
        for number in range(20):
            begun = time.monotonic()
            rig.buffer.put(Prediction("hurry", "m"))
            rig.writer.hurry()
            assert spooled(rig.progress, number + 1)
            took.append(time.monotonic() - begun)
        assert min(took) < 0.04


def test_stopping_spools_what_waits(tmp_path: Path) -> None:
    with writing(tmp_path) as rig:
        for number in range(50):
            rig.buffer.put(Prediction(str(number), "m"))
    assert rig.progress.spooled == 50


def test_drops_take_their_sequences(tmp_path: Path) -> None:
    with writing(tmp_path, "drop_newest", limit=2) as rig:
        rig.disk.failing = sqlite3.OperationalError("disk I/O error")
        rig.buffer.put(Prediction("0", "m"))
        assert eventually(lambda: rig.disk.attempts > 0)
        for number in range(1, 6):
            rig.buffer.put(Prediction(str(number), "m"))
        rig.disk.failing = None
        assert spooled(rig.progress, 6)
        assert rig.disk.names() == ["1", "2", "3", "4-6 DROPPED_NEWEST"]
        assert rig.progress.dropped == {"dropped_newest": 3}


@pytest.mark.parametrize(
    "failure",
    [
        sqlite3.OperationalError("database or disk is full"),
        OSError(28, "No space left on device"),
        RuntimeError("a bug"),
    ],
)
def test_a_disk_that_recovers_in_time_costs_nothing(
    tmp_path: Path, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with writing(tmp_path) as rig:
        rig.disk.failing = failure
        rig.buffer.put(Prediction("0", "m"))
        assert eventually(lambda: rig.disk.attempts >= 2)
        assert rig.progress.spooled == 0
        rig.disk.failing = None
        assert spooled(rig.progress, 1)
        assert rig.disk.names() == ["1"]
        assert rig.progress.dropped == {}
        assert rig.progress.spool_error is None
    assert [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.slow
def test_a_disk_that_does_not_recover_costs_predictions_but_not_the_node(tmp_path: Path) -> None:
    with writing(tmp_path, limit=10, patience_seconds=0.3) as rig:
        rig.buffer.put(Prediction("first", "m"))
        assert spooled(rig.progress, 1)
        rig.disk.failing = sqlite3.OperationalError("database or disk is full")
        for number in range(60):  # blocks until the writer gives up what waits
            rig.buffer.put(Prediction(str(number), "m"), timeout=20)
        assert rig.progress.spool_error == "database or disk is full"
        assert eventually(lambda: rig.progress.dropped["spool_write_failed"] == 60)
        assert rig.progress.spooled == 1
        rig.disk.failing = None
        rig.buffer.put(Prediction("last", "m"))
        assert spooled(rig.progress, 62)
        assert rig.disk.names() == ["1", "2-61 SPOOL_WRITE_FAILED", "62"]
        assert rig.progress.dropped == {"spool_write_failed": 60}


def test_who_waits_for_a_prediction_that_is_given_up_is_told(tmp_path: Path) -> None:
    with writing(tmp_path, patience_seconds=0.0) as rig:
        rig.disk.failing = OSError("full")
        ordinal = rig.buffer.add(Prediction("0", "m"))
        reason = rig.progress.wait_for_outcome(ordinal, lambda: rig.progress.spooled >= ordinal, 20)
        assert reason is GapReason.SPOOL_WRITE_FAILED


def test_a_record_that_was_tampered_with_is_a_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Prediction("bad", "m", labels={"k": "v"})
    bad.labels["k"] = 3  # type: ignore[index]
    with writing(tmp_path) as rig:
        for prediction in (Prediction("0", "m"), bad, Prediction("2", "m")):
            rig.buffer.put(prediction)
        assert spooled(rig.progress, 3)
        assert rig.disk.names() == ["1", "2-2 SPOOL_WRITE_FAILED", "3"]
    assert "'bad' cannot be encoded" in caplog.text


def test_the_spool_may_open_late(tmp_path: Path) -> None:
    progress = Progress()
    buffer = RecordBuffer("block", 10, 1 << 30, on_first=lambda: None, on_half=lambda: None)
    disk, attempts = Disk(tmp_path, progress), list[int]()

    def open_spool() -> Spool:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError(30, "Read-only file system")
        return disk.spool

    writer = Writer(buffer, open_spool, progress)
    buffer.put(Prediction("0", "m"))
    buffer.close()
    writer.stop()
    writer.run()
    assert len(attempts) == 3
    assert disk.names() == ["1"]
    disk.spool.close()


def test_the_spool_is_tended(tmp_path: Path) -> None:
    with writing(tmp_path) as rig:
        maintained = threading.Event()
        rig.disk.spool.maintain = maintained.set  # type: ignore[method-assign]
        rig.buffer.put(Prediction("0", "m"))
        assert maintained.wait(20)


@pytest.mark.slow
def test_what_comes_after_something_was_given_up_has_its_time_to_wait(tmp_path: Path) -> None:
    with writing(tmp_path, patience_seconds=3.0) as rig:
        rig.disk.failing = OSError("full")
        rig.buffer.put(Prediction("0", "m"))
        assert eventually(lambda: rig.progress.dropped["spool_write_failed"] == 1)
        attempts = rig.disk.attempts
        rig.buffer.put(Prediction("1", "m"))
        assert eventually(lambda: rig.disk.attempts >= attempts + 3)
        rig.disk.failing = None
        assert spooled(rig.progress, 2)
        assert rig.disk.names() == ["1-1 SPOOL_WRITE_FAILED", "2"]
