"""Salvage of a damaged spool that is interrupted, and what it leaves behind."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.spool.caps import Lost
from edge.spool.entries import GapReason, Row
from edge.spool.file import SpoolFile
from edge.spool.reader import connect_to_read
from edge.spool.recovery import salvage as salvaging
from edge.spool.recovery.aside import names, prune, set_aside_files
from edge.spool.spool import Spool
from edge.spool.superblock import SuperblockFile
from tests.unit.edge.spool.damaging import (
    NO_LIMITS,
    Server,
    body,
    crash,
    db,
    flip,
    header,
    opened,
    wal,
)


def test_a_process_that_is_killed_while_it_salvages_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as spool:
        for number in range(100):
            spool.append([body(f"{number}", 100)])
        image = crash(tmp_path, tmp_path / "image")
    flip(random.Random(1), wal(image), of=3)
    stopped = 0
    for step in range(40):
        again = crash(image, tmp_path / f"again{step}")
        stop = Stop(step)
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink"):
                patch.setattr(Path, name, stop.before(getattr(Path, name)))
            try:
                Spool(again, "gate-1", NO_LIMITS, lambda _: None).close()
            except KeyboardInterrupt:
                stopped += 1
        server = Server()
        server.drain(again)
        assert len(server.stored) + server.declared.total() == 100
        assert len(server.stored) >= 97
        assert len(set_aside_files(again)) == 1
        if stop.calls <= step:
            break
    assert stopped >= 4


@dataclass
class Stop:
    """Ends the process, as it were, at one of the steps it takes."""

    step: int
    calls: int = 0

    def before(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            self.calls += 1
            if self.calls > self.step:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        return call


def test_a_failed_change_is_not_salvaged_and_logged_again(tmp_path: Path) -> None:
    """Rolled-back rows remain in the bytes of the log; their owner will log them once more."""
    with opened(tmp_path) as spool:
        spool.append([body("a")])
        spool._file._db.execute("PRAGMA cache_size = 5")  # so that it is written before the end
        with suppress(RuntimeError), spool._file.transaction():
            spool._file.append([body(f"b{n}", 100) for n in range(500)], 1.0, 1.0)
            raise RuntimeError
        # Another connection keeps the log from being moved into the file, as damage does.
        with closing(connect_to_read(db(tmp_path))) as other:
            other.execute("SELECT * FROM predictions").fetchone()
            spool._recover(RuntimeError("as if"))
        log = tmp_path / "spool.salvaged-1.db-wal"
        assert body("b400", 100) in log.read_bytes()
        spool.append([body("b")])
        entries = spool.read(spool.identity.spool_id, 0, 1000, 1 << 20)
    assert [entry.prediction[2:] for entry in entries if isinstance(entry, Row)] == [
        body("a"),
        body("b"),
    ]


def test_rows_of_before_a_renewal_are_not_taken_for_others(tmp_path: Path) -> None:
    """They are still in parts of the file that are not in use, under sequences of others."""
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(1000)])
        spool._file._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        spool.acknowledge(spool.identity.spool_id, 450)
        spool.renew(spool.identity.spool_id)
        before = spool.read(spool.identity.spool_id, 0, 1000, 1 << 20)
        assert len(before) == 550
        spool._recover(RuntimeError("as if"))
        assert spool.read(spool.identity.spool_id, 0, 1000, 1 << 20) == before


def test_what_was_given_up_stays_given_up(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(500)])
        for sequence in (7, 8, 300):
            spool.give_up(spool.identity.spool_id, sequence, GapReason.UNREADABLE)
        before = spool.read(spool.identity.spool_id, 0, 1000, 1 << 20)
        spool._recover(RuntimeError("as if"))
        after = spool.read(spool.identity.spool_id, 0, 1000, 1 << 20)
    assert after == before


def test_set_aside_files_are_bounded(tmp_path: Path) -> None:
    for number in range(8):
        with opened(tmp_path) as spool:
            spool.append([body(f"{number}")])
            spool._recover(RuntimeError("as if"))
    assert names(set_aside_files(tmp_path)) == [f"spool.salvaged-{n}.db" for n in (5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("max_bytes", "remaining"),
    [
        (1 << 30, ["damaged-1", "damaged-4", "salvaged-7", "salvaged-8"]),
        (3000, ["damaged-1", "damaged-4", "salvaged-8"]),
        (1000, ["damaged-4"]),
        (10, []),
    ],
)
def test_what_was_salvaged_goes_first_then_the_oldest(
    tmp_path: Path, max_bytes: int, remaining: list[str]
) -> None:
    for number in range(1, 9):
        kind = "damaged" if number in (1, 4) else "salvaged"
        (tmp_path / f"spool.{kind}-{number}.db").write_bytes(bytes(900))
        (tmp_path / f"spool.{kind}-{number}.db-wal").write_bytes(bytes(100))
    prune(tmp_path, max_bytes)
    assert names(set_aside_files(tmp_path)) == [f"spool.{name}.db" for name in remaining]
    assert len(list(tmp_path.iterdir())) == 2 * len(remaining)


def test_what_is_known_is_noted_when_a_spool_is_opened(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        superblock = SuperblockFile(tmp_path).read()
        assert superblock is not None
        assert superblock.identity == spool.identity


@pytest.mark.parametrize("ordinal", [1, 2])
def test_a_prediction_one_waits_for_is_reported_lost(tmp_path: Path, ordinal: int) -> None:
    """Ordinals count from the start of the process, whatever was in the spool."""
    with opened(tmp_path) as spool:
        spool.append([body("before")] * 3)
    lost: list[Lost] = []
    with opened(tmp_path, lost) as spool:
        spool.append([body(f"{n}", 3000) for n in range(2)])
        spool._file._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = db(tmp_path).read_bytes()
        start = body(f"{ordinal - 1}", 3000)[:40]
        assert start in data
        with db(tmp_path).open("r+b") as file:
            file.write(data.replace(start, bytes(40)))
        spool._recover(RuntimeError("as if"))
    assert [(run.first, run.last, run.count) for run in lost] == [(ordinal, ordinal, 1)]


@contextmanager
def unfinished(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps what is salvaged from getting into its file, as a disk does that is nearly full."""
    readers, fill = list[sqlite3.Connection](), salvaging._fill

    def then_read(file: SpoolFile, *more: Any) -> list[Lost]:
        readers.append(connect_to_read(file.path))
        readers[-1].execute("BEGIN")
        readers[-1].execute("SELECT count(*) FROM predictions").fetchone()
        return fill(file, *more)

    with patch.context() as patched:
        patched.setattr(salvaging, "_fill", then_read)
        yield
    for reader in readers:
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_noted", [True, False])
def test_what_is_salvaged_takes_the_place_when_all_of_it_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_noted: bool
) -> None:
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(100)])
        before = spool.identity
    header(random.Random(1), tmp_path)
    if not is_noted:
        SuperblockFile(tmp_path).remove()
    with unfinished(monkeypatch):
        for _ in range(3):
            with pytest.raises(OSError, match="another process is reading the spool"):
                Spool(tmp_path, "gate-1", NO_LIMITS, lambda _: None)
    assert not set_aside_files(tmp_path)
    assert not list(tmp_path.glob("forks/*"))  # each attempt would leave one more
    assert not list(tmp_path.rglob("*.part*"))
    with opened(tmp_path) as spool:
        assert (spool.identity.spool_id == before.spool_id) is is_noted
    server = Server()
    server.drain(tmp_path)
    assert len(server.stored) + server.declared.total() == 100
    assert len(server.stored) == 100
