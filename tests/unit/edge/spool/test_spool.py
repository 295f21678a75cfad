import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.spool.caps import Lost, SpoolLimits
from edge.spool.directories import FILE_NAME
from edge.spool.entries import Dropped, Gap, GapReason, Row
from edge.spool.spool import ReplacedError, Spool
from servicekit.errors import SightlineError

NO_LIMITS = SpoolLimits(1 << 40, 0.0, 0)


class Clocks:
    """Clocks that the test moves."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self.wall_time = wall
        self.steady_time = 5.0

    def pass_by(self, seconds: float) -> None:
        self.wall_time += seconds
        self.steady_time += seconds


class Opened(NamedTuple):
    spool: Spool
    lost: list[Lost]
    clocks: Clocks

    @property
    def id(self) -> str:
        return self.spool.identity.spool_id


def opened(folder: Path, limits: SpoolLimits = NO_LIMITS, clocks: Clocks | None = None) -> Opened:
    lost, clocks = list[Lost](), clocks or Clocks()
    spool = Spool(
        folder,
        "gate-1",
        limits,
        lost.append,
        wall=lambda: clocks.wall_time,
        steady=lambda: clocks.steady_time,
    )
    return Opened(spool, lost, clocks)


def body(name: str = "image") -> bytes:
    return prediction_body(Prediction(name, "m"), 0.0)


def sequences(rig: Opened, after: int = 0) -> list[int | tuple[int, int, str]]:
    entries = rig.spool.read(rig.id, after, 1 << 20, 1 << 30)
    return [
        entry.sequence if isinstance(entry, Row) else (entry.first, entry.last, entry.reason.name)
        for entry in entries
    ]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Opened]:
    rig = opened(tmp_path)
    yield rig
    rig.spool.close()


def test_ordinals_and_sequences(tmp_path: Path) -> None:
    rig = opened(tmp_path)
    rig.spool.append([body(), body(), Dropped(3, GapReason.DROPPED_NEWEST)])
    assert (rig.spool.spooled, rig.spool.committed) == (5, 0)
    assert rig.spool.acknowledge(rig.id, 4) == 2
    assert (rig.spool.spooled, rig.spool.committed) == (5, 4)
    rig.spool.close()
    rig = opened(tmp_path)
    assert (rig.spool.spooled, rig.spool.committed) == (0, -1)
    rig.spool.append([body()])
    assert (rig.spool.spooled, rig.spool.committed) == (1, -1)
    rig.spool.close()


def test_a_second_process_is_refused(tmp_path: Path, rig: Opened) -> None:
    script = (
        "import pathlib, sys; from edge.spool.spool import Spool;"
        "from edge.spool.caps import SpoolLimits;"
        "Spool(pathlib.Path(sys.argv[1]), 'gate-1', SpoolLimits(1 << 30, 0, 0), print)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert f"in use by process {os.getpid()}" in result.stderr
    assert "SPOOL_LOCKED" in result.stderr


def test_a_second_spool_in_this_process_is_refused_until_the_first_is_closed(
    tmp_path: Path,
) -> None:
    rig = opened(tmp_path)
    with pytest.raises(SightlineError) as caught:
        opened(tmp_path)
    assert caught.value.reason == "SPOOL_LOCKED"
    rig.spool.close()
    opened(tmp_path).spool.close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from edge.spool.spool import Spool;"
        "from edge.spool.caps import SpoolLimits;"
        "s = Spool(pathlib.Path(sys.argv[1]), 'gate-1', SpoolLimits(1 << 30, 0, 0), print);"
        "s.append([b'x' * 10] * 3); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    rig = opened(tmp_path)
    assert sequences(rig) == [1, 2, 3]
    rig.spool.close()


def test_another_devices_spool_is_refused(tmp_path: Path, rig: Opened) -> None:
    rig.spool.close()
    with pytest.raises(SightlineError, match=r"'gate-1'.*'gate-2'") as caught:
        Spool(tmp_path, "gate-2", NO_LIMITS, print)
    assert caught.value.reason == "SPOOL_OF_ANOTHER_DEVICE"
    opened(tmp_path).spool.close()


def test_bytes_evict_the_oldest(tmp_path: Path) -> None:
    rig = opened(tmp_path, SpoolLimits(2 << 20, 0.0, 0))
    for _ in range(40):
        rig.spool.append([body("x" * 400)] * 250)
    kept = sequences(rig)
    first, last, reason = kept[0]  # type: ignore[misc]
    assert (first, reason) == (1, "SPOOL_BYTES")
    assert kept[1:] == list(range(last + 1, 10_001))
    assert sum(lost.count for lost in rig.lost) == last
    assert {(lost.first, lost.reason) for lost in rig.lost} == {(1, GapReason.SPOOL_BYTES)}
    assert 4000 < len(kept) < 5000
    rig.spool.close()
    assert (tmp_path / FILE_NAME).stat().st_size < 2.5 * 2**20


def test_a_disk_at_its_reserve_keeps_the_spool_from_growing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10 << 30]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0]))
    rig = opened(tmp_path, SpoolLimits(1 << 40, 0.0, 1 << 30))
    rig.spool.append([body("x" * 400)] * 10_000)
    assert rig.lost == []
    grown = (tmp_path / FILE_NAME).stat().st_size
    free[0] = 1 << 20
    for _ in range(100):
        rig.spool.append([body("x" * 400)] * 100)
    assert {lost.reason for lost in rig.lost} == {GapReason.DISK_RESERVE}
    kept = sequences(rig)
    assert kept[0][2] == "DISK_RESERVE"  # type: ignore[index]
    assert 8_500 < len(kept) < 10_100  # what others take from the disk is not taken out of it
    rig.spool.close()
    assert (tmp_path / FILE_NAME).stat().st_size < 1.1 * grown + (1 << 20)


def test_age_evicts_by_a_clock_that_nobody_sets(tmp_path: Path) -> None:
    rig = opened(tmp_path, SpoolLimits(1 << 40, 60.0, 0))
    rig.spool.append([body(), body()])
    rig.clocks.pass_by(40)
    rig.spool.append([body()])
    rig.clocks.wall_time += 86_400 * 365  # NTP corrects it
    rig.spool.maintain()
    assert rig.lost == []
    rig.clocks.pass_by(21)
    rig.spool.maintain()
    assert rig.lost == [Lost(1, 2, GapReason.SPOOL_AGE, 2)]
    assert sequences(rig) == [(1, 2, "SPOOL_AGE"), 3]
    rig.spool.close()


def test_unused_space_is_given_back(tmp_path: Path, rig: Opened) -> None:
    rig.spool.append([body("x" * 1000)] * 20_000)
    rig.spool.acknowledge(rig.id, 20_000)
    for _ in range(3):
        rig.spool.maintain()
    rig.spool.append([body()])
    rig.spool.close()
    assert (tmp_path / FILE_NAME).stat().st_size < 6 << 20


def test_what_is_missing_becomes_a_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = opened(tmp_path)
    rig.spool.append([body()] * 5)
    rig.spool.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE predictions SET prediction = x'08' WHERE sequence IN (2, 3, 5)")
    db.close()
    rig = opened(tmp_path)
    expected = [1, (2, 3, "SPOOL_DAMAGED"), 4, (5, 5, "SPOOL_DAMAGED")]
    assert sequences(rig) == expected
    assert "damaged at sequences [(2, 3), (5, 5)]" in caplog.text
    assert [(lost.first, lost.last, lost.count) for lost in rig.lost] == [(-3, -2, 2), (0, 0, 1)]
    rig.spool.close()
    rig = opened(tmp_path)
    assert sequences(rig) == expected
    rig.spool.close()


def test_changes_of_a_spool_that_was_replaced_are_refused(rig: Opened) -> None:
    rig.spool.append([body()])
    old = rig.id
    rig.spool.renew(old)
    for change in (
        lambda: rig.spool.read(old, 0, 1, 1),
        lambda: rig.spool.acknowledge(old, 1),
        lambda: rig.spool.give_up(old, 1, GapReason.UNREADABLE),
        lambda: rig.spool.rewind(old, 0),
        lambda: rig.spool.renew(old),
    ):
        with pytest.raises(ReplacedError):
            change()
    assert rig.spool.sent_through == 0
    assert sequences(rig) == [1]


def test_one_prediction_is_given_up(rig: Opened) -> None:
    rig.spool.append([body()] * 3)
    rig.spool.give_up(rig.id, 2, GapReason.UNREADABLE)
    assert sequences(rig) == [1, (2, 2, "UNREADABLE"), 3]
    assert rig.lost == [Lost(2, 2, GapReason.UNREADABLE, 1)]


def test_garbage_is_set_aside_when_the_spool_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\x00 no database \xff" * 500)
    rig = opened(tmp_path)
    rig.spool.append([body()])
    assert rig.spool.damaged == 1
    assert (tmp_path / "spool.damaged-1.db").read_bytes().startswith(b"\x00 no database")
    assert "set aside as" in caplog.text
    rig.spool.close()
    (tmp_path / FILE_NAME).write_bytes(b"again" * 500)
    rig = opened(tmp_path)
    assert sequences(rig) == [(1, 1, "SPOOL_DAMAGED")]
    rig.spool.close()
    assert (tmp_path / "spool.salvaged-2.db").exists()


def test_damage_while_the_spool_is_in_use(tmp_path: Path) -> None:
    rig = opened(tmp_path)
    rig.spool.append([body("x" * 300)] * 2000)
    rig.spool.acknowledge(rig.id, 500)
    rig.spool.close()
    pages = bytearray((tmp_path / FILE_NAME).read_bytes())
    pages[8192:] = bytes(byte ^ 0x5A for byte in pages[8192:])  # but not the schema
    (tmp_path / FILE_NAME).write_bytes(pages)
    spool = _use(tmp_path)
    assert spool.damaged == 1
    assert list(tmp_path.glob("spool.salvaged-1.db"))


def _use(folder: Path) -> Spool:
    """Opens a spool, whatever is wrong with it, logs a prediction, reads and closes it."""
    rig = opened(folder)
    before = rig.id
    rig.spool.append([body("new")])
    try:
        entries = rig.spool.read(rig.id, rig.spool.identity.acknowledged, 1 << 20, 1 << 30)
    except ReplacedError:
        assert rig.id != before
        rig.spool.append([body("new")])
        entries = rig.spool.read(rig.id, 0, 1 << 20, 1 << 30)
    assert isinstance(entries[-1], Row)
    assert entries[-1].prediction.endswith(body("new"))
    position = rig.spool.identity.acknowledged
    for entry in entries:
        first = entry.first if isinstance(entry, Gap) else entry.sequence
        assert first == position + 1
        position = entry.sequence
    assert position == rig.spool.identity.last
    rig.spool.maintain()
    rig.spool.close()
    return rig.spool


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_never_keep_the_node_from_logging(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each read entry equals the written one, or is in a gap, or the file was set aside."""
    caplog.set_level(logging.CRITICAL)
    chance = random.Random(seed)
    rig = opened(tmp_path)
    written = [body(f"{seed}/{number}") for number in range(300)]
    rig.spool.append(written)
    rig.spool.append([Dropped(3, GapReason.DROPPED_OLDEST)])
    rig.spool.acknowledge(rig.id, 40)
    spool_id = rig.id
    rig.spool.close()
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    for _ in range(chance.choice([1, 1, 3, 30])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.15:
        del data[chance.randrange(len(data)) :]
    (tmp_path / FILE_NAME).write_bytes(data)
    _use(tmp_path)
    rig = opened(tmp_path)
    if rig.id == spool_id:
        for entry in rig.spool.read(spool_id, rig.spool.identity.acknowledged, 1 << 20, 1 << 30):
            if isinstance(entry, Row) and entry.sequence <= 300:
                assert entry.prediction.endswith(written[entry.sequence - 1])
    rig.spool.close()


def test_a_full_disk_keeps_nothing_of_the_group_and_what_was_there(
    rig: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.spool.append([body()])
    rig.spool._file._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        rig.spool.append([body("x" * 1000)] * 1000)
    assert (rig.spool.spooled, rig.spool.identity.last) == (1, 1)
    rig.spool._file._db.execute("PRAGMA max_page_count = 100000")
    rig.spool.append([body()])
    assert sequences(rig) == [1, 2]


def test_a_spool_that_is_empty_can_be_removed(tmp_path: Path) -> None:
    rig = opened(tmp_path / "home")
    rig.spool.append([body()])
    rig.spool.acknowledge(rig.id, 1)
    rig.spool.remove()
    assert not (tmp_path / "home").exists()
