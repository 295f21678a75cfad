"""A clock that somebody sets, in any direction: nothing ages by it, nothing waits for it."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.log import record_buffer, writer
from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Prediction
from edge.ship import shipper
from edge.spool import superblock as superblocks
from edge.spool.caps import SpoolLimits
from edge.spool.entries import GapReason
from tests.fakes.ingest import UNAVAILABLE, FakeIngest
from tests.unit.edge.spool.test_spool import Clocks, Opened, body, opened, sequences

YEAR = 365.25 * 86_400
A_DAY = SpoolLimits(1 << 40, 86_400.0, 0)
JUMPS = {
    "forward": [10 * YEAR],
    "back": [-10 * YEAR],
    "back and forth": [10 * YEAR, -20 * YEAR, 10 * YEAR],
    "before 1970": [-60 * YEAR],
}


@pytest.fixture
def ingest() -> Iterator[FakeIngest]:
    with FakeIngest() as server:
        yield server


@pytest.mark.parametrize("jumps", JUMPS.values(), ids=JUMPS)
@pytest.mark.parametrize("reopened", [False, True])
def test_nothing_ages_by_a_jump_and_everything_by_the_time_that_passes(
    tmp_path: Path, jumps: list[float], reopened: bool
) -> None:
    rig = opened(tmp_path, A_DAY)
    clocks = rig.clocks
    for jump in jumps:
        rig.spool.append([body()])
        clocks.wall_time += jump
        if reopened:
            rig = again(rig, tmp_path)
        rig.spool.maintain()
        clocks.pass_by(60)
    assert rig.lost == []
    clocks.pass_by(86_390 - 60 * len(jumps))
    rig.spool.append([body()])
    rig.spool.maintain()
    assert rig.lost == []
    clocks.pass_by(200)
    rig.spool.maintain()
    count = len(jumps)
    assert sum(lost.count for lost in rig.lost) == count
    assert sequences(rig) == [(1, count, "SPOOL_AGE"), count + 1]
    rig.spool.close()


def again(rig: Opened, folder: Path, limits: SpoolLimits = A_DAY) -> Opened:
    rig.spool.close()
    return opened(folder, limits, rig.clocks)


def test_age_counts_while_no_process_runs_as_long_as_the_machine_does(tmp_path: Path) -> None:
    rig = opened(tmp_path, A_DAY)
    rig.spool.append([body()])
    rig.clocks.pass_by(90_000)
    rig = again(rig, tmp_path)
    rig.spool.maintain()
    assert [lost.reason for lost in rig.lost] == [GapReason.SPOOL_AGE]
    rig.spool.close()


@pytest.mark.parametrize("wall", [0.0, 1_700_000_000.0 + 10 * YEAR])
def test_time_while_the_machine_is_off_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wall: float
) -> None:
    """No clock of a device can be trusted to say how long that was."""
    rig = opened(tmp_path, A_DAY)
    rig.spool.append([body()])
    rig.clocks.pass_by(80_000)
    rig.spool.append([body()])
    rig.spool.close()
    monkeypatch.setattr(superblocks, "_BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another boot")
    clocks = Clocks(wall)
    clocks.steady_time = 1e6
    rig = opened(tmp_path, A_DAY, clocks)
    rig.spool.maintain()
    assert rig.lost == []
    rig.clocks.pass_by(7_000)
    rig.spool.maintain()
    assert sequences(rig) == [(1, 1, "SPOOL_AGE"), 2]
    rig.spool.close()


@pytest.mark.parametrize("wall", [0.0, 1000.0, -5 * YEAR])
def test_a_clock_that_was_never_set_still_ages(tmp_path: Path, wall: float) -> None:
    rig = opened(tmp_path, A_DAY, Clocks(wall))
    rig.spool.append([body()])
    rig = again(rig, tmp_path)
    rig.clocks.wall_time = 1_700_000_000.0
    rig.spool.maintain()
    assert rig.lost == []
    rig.clocks.pass_by(90_000)
    rig.spool.maintain()
    assert sequences(rig) == [(1, 1, "SPOOL_AGE")]
    rig.spool.close()


def test_a_time_that_is_not_what_was_written_ages_no_other(tmp_path: Path) -> None:
    rig = opened(tmp_path, A_DAY)
    rig.spool.append([body(), body(), body()])
    rig.spool.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("UPDATE predictions SET spooled_at = 1e18 WHERE sequence = 3")
    db.close()
    rig = opened(tmp_path, A_DAY, rig.clocks)
    rig.spool.maintain()
    assert sequences(rig) == [1, 2, 3]
    rig.spool.close()


class Moved:
    """The module `time`, with a wall clock that somebody sets."""

    def __init__(self) -> None:
        self.by = 0.0

    def time(self) -> float:
        return time.time() + self.by

    def time_ns(self) -> int:
        return time.time_ns() + int(self.by * 1e9)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@pytest.mark.parametrize("failures", [0, 3])
def test_logging_and_its_retries_go_on_while_the_clock_jumps(
    tmp_path: Path, ingest: FakeIngest, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    moved = Moved()
    # gRPC reads the clock of this machine by itself.
    for module in (record_buffer, shipper, writer):
        monkeypatch.setattr(module, "time", moved)
    monkeypatch.setattr(record_buffer, "_now", moved.time)
    ingest.before.extend([UNAVAILABLE] * failures)
    options = LogOptions(batch_timeout_seconds=0.0, spool_age_seconds=3600.0)
    with PredictionLogger(
        ingest.target, device_id="gate-1", spool_dir=tmp_path, options=options
    ) as log:
        for number, jump in enumerate([0.0, 10 * YEAR, -10 * YEAR, -50 * YEAR, 0.0]):
            moved.by = jump
            log(Prediction(f"i{number}", "m"), wait="spooled", timeout=20)
        assert log.flush(60, until="committed")
        assert log.stats().dropped == {}
    assert ingest.images() == [f"i{number}" for number in range(5)]
