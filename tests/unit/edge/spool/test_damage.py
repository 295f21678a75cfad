"""Whatever happens to the bytes of a spool: what is readable is sent once, the rest is declared."""

import logging
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edge.log.encode import prediction_body
from edge.records import Prediction
from edge.spool.caps import Lost, SpoolLimits
from edge.spool.directories import FILE_NAME, fork_directories
from edge.spool.entries import Gap, GapReason, Row
from edge.spool.file import SpoolFile
from edge.spool.reader import connect_to_read
from edge.spool.recovery import salvage as salvaging
from edge.spool.recovery.aside import names, prune, set_aside_files
from edge.spool.spool import Spool
from edge.spool.superblock import SuperblockFile, location_of
from edge.wire import sequence_field

NO_LIMITS = SpoolLimits(1 << 40, 0.0, 0)
SEEDS = int(os.environ.get("SPOOL_SEEDS", "5"))


def body(name: str, size: int = 0) -> bytes:
    return prediction_body(Prediction(name, "m" * size or "m"), 0.0)


@contextmanager
def opened(folder: Path, lost: list[Lost] | None = None) -> Iterator[Spool]:
    spool = Spool(folder, "gate-1", NO_LIMITS, ([] if lost is None else lost).append)
    try:
        yield spool
    finally:
        spool.close()


@dataclass
class Server:
    """A model of the server that stores predictions by spool and relies only on its watermarks."""

    watermarks: Counter[str] = field(default_factory=Counter)
    stored: list[bytes] = field(default_factory=list)
    declared: Counter[GapReason] = field(default_factory=Counter)

    def take(self, spool: Spool, through: int | None = None) -> None:
        """Ships as the shipper does, up to a sequence, without telling the spool of the end."""
        self._ask(spool)
        identity = spool.identity
        for entry in spool.read(identity.spool_id, identity.acknowledged, 1 << 20, 1 << 30):
            if through is not None and entry.sequence > through:
                break
            spool.sending(identity.spool_id, entry.sequence)
            self._store(identity.spool_id, entry)

    def drain(self, folder: Path) -> None:
        with opened(folder):  # which may make fork directories
            pass
        for fork in [folder, *fork_directories(folder)]:
            with opened(fork) as spool:
                self.take(spool)
                self._ask(spool)
                if spool.identity.pending:  # it was renewed
                    self.take(spool)
                    self._ask(spool)
                assert spool.identity.pending == 0

    def _ask(self, spool: Spool) -> None:
        spool_id, watermark = spool.identity.spool_id, self.watermarks[spool.identity.spool_id]
        if watermark > spool.sent_through:
            spool.acknowledge(spool_id, spool.sent_through)
            spool.renew(spool_id)
        elif watermark > spool.identity.acknowledged:
            spool.acknowledge(spool_id, watermark)

    def _store(self, spool_id: str, entry: Row | Gap) -> None:
        watermark = self.watermarks[spool_id]
        if entry.sequence <= watermark:
            return
        if isinstance(entry, Gap):
            assert entry.first <= watermark + 1
            self.declared[entry.reason] += entry.last - max(entry.first - 1, watermark)
        else:
            assert entry.sequence == watermark + 1
            self.stored.append(entry.prediction.removeprefix(sequence_field(entry.sequence)))
        self.watermarks[spool_id] = entry.sequence

    def check(self, spooled: list[bytes]) -> int:
        """Checks that nothing is there twice or undeclared; returns how many are missing."""
        assert not [name for name, count in Counter(self.stored).items() if count > 1]
        missing = set(spooled) - set(self.stored)
        assert len(missing) <= self.declared.total()
        assert set(self.stored) <= set(spooled)
        return len(missing)


def crash(folder: Path, image: Path) -> Path:
    """Copies a folder in use, as a process that is killed leaves it."""
    shutil.copytree(folder, image)
    superblock_file = SuperblockFile(image)
    superblock = superblock_file.read()
    assert superblock is not None
    # It must not look like a copy.
    superblock_file.write(replace(superblock, location=location_of(db(image))))
    superblock_file.close()
    return image


Damage = Callable[[random.Random, Path], None]


def flip(chance: random.Random, path: Path, *, of: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(of):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def wipe(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data)) // 4096 * 4096
    data[start : start + 4096 * chance.choice([1, 2, 8])] = bytes(4096)
    path.write_bytes(data)


def cut(chance: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def db(folder: Path) -> Path:
    return folder / FILE_NAME


def wal(folder: Path) -> Path:
    return folder / f"{FILE_NAME}-wal"


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def header(chance: random.Random, folder: Path) -> None:
    put(db(folder), chance.randbytes(100) + db(folder).read_bytes()[100:])


def both(_: random.Random, folder: Path) -> None:
    wal(folder).unlink()
    db(folder).unlink()


DAMAGES: dict[str, Damage] = {
    "nothing": lambda chance, folder: None,
    "flipped bit": lambda chance, folder: flip(chance, db(folder)),
    "flipped bits": lambda chance, folder: flip(chance, db(folder), of=40),
    "wiped pages": lambda chance, folder: wipe(chance, db(folder)),
    "cut": lambda chance, folder: cut(chance, db(folder)),
    "empty": lambda chance, folder: put(db(folder), b""),
    "gone": lambda chance, folder: db(folder).unlink(),
    "garbage": lambda chance, folder: put(db(folder), chance.randbytes(20_000)),
    "header": header,
    "log: flipped bit": lambda chance, folder: flip(chance, wal(folder)),
    "log: flipped bits": lambda chance, folder: flip(chance, wal(folder), of=40),
    "log: wiped pages": lambda chance, folder: wipe(chance, wal(folder)),
    "log: cut": lambda chance, folder: cut(chance, wal(folder)),
    "log: empty": lambda chance, folder: put(wal(folder), b""),
    "log: gone": lambda chance, folder: wal(folder).unlink(),
    "log: garbage": lambda chance, folder: put(wal(folder), chance.randbytes(9000)),
    "both gone": both,
    "superblock: flipped bit": lambda chance, folder: flip(chance, folder / "spool.mark", of=30),
    "superblock: gone": lambda chance, folder: (folder / "spool.mark").unlink(),
}


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_readable_is_sent_once_and_the_rest_is_declared(
    tmp_path: Path, kind: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    chance, server, spooled = random.Random(f"{kind}/{seed}"), Server(), list[bytes]()

    def log(spool: Spool, count: int) -> None:
        bodies = [
            body(f"{len(spooled) + number}", chance.choice([0, 0, 0, 300, 9000]))
            for number in range(count)
        ]
        spool.append(list(bodies))
        spooled.extend(bodies)

    live = tmp_path / "live"
    if chance.random() < 0.5:  # so that not all of it is in the log
        with opened(live) as spool:
            log(spool, 200)
            server.take(spool, chance.randrange(1, 200))
    with opened(live) as spool:
        for _ in range(chance.randrange(1, 12)):
            log(spool, chance.randrange(1, 60))
            if chance.random() < 0.5:
                server.take(spool, chance.randint(1, len(spooled)))
        image = crash(live, tmp_path / "image")
    DAMAGES[kind](chance, image)
    with opened(image) as spool:
        log(spool, 20)
        if chance.random() < 0.5:
            server.take(spool)
            log(spool, 5)
    with opened(image) as spool:  # an idle life
        log(spool, 3)
    server.drain(image)
    missing = server.check(spooled)
    if kind in ("nothing", "superblock: flipped bit", "superblock: gone"):
        assert missing == 0
        assert not set_aside_files(image)
    if kind in ("flipped bit", "log: flipped bit"):
        assert missing <= 2  # predictions whose bytes they are
    if kind == "header":
        assert missing <= 12  # those on one page


def test_a_log_that_ends_too_early_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite says nothing, and gives the sequences of what is gone out again."""
    server = Server()
    with opened(tmp_path / "live") as spool:
        for number in range(20):
            spool.append([body(f"{number}")])
        server.take(spool)
        image = crash(tmp_path / "live", tmp_path / "image")
    log = wal(image)
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    lost: list[Lost] = []
    with opened(image, lost) as spool:
        assert spool.identity.last == 20
        spool.append([body("new")])
        server.take(spool)
        assert server.watermarks[spool.identity.spool_id] == 21
    assert "the superblock records" in caplog.text
    assert server.stored[-1] == body("new")
    (run,) = lost
    assert (run.last, run.reason) == (0, GapReason.SPOOL_DAMAGED)


def test_what_comes_after_a_damaged_frame_of_the_log_is_salvaged(tmp_path: Path) -> None:
    with opened(tmp_path / "live") as spool:
        for number in range(50):
            spool.append([body(f"{number}", 5000)])
        image = crash(tmp_path / "live", tmp_path / "image")
    data = bytearray(wal(image).read_bytes())
    data[len(data) // 4] ^= 1
    wal(image).write_bytes(data)
    server = Server()
    server.drain(image)
    assert len(server.stored) >= 49
    assert names(set_aside_files(image)) == ["spool.salvaged-1.db"]


def test_rows_that_no_tree_leads_to_are_salvaged(tmp_path: Path) -> None:
    """The inner pages of the tree are wiped: SQLite finds nothing any more."""
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(3000)])
    data = bytearray(db(tmp_path).read_bytes())
    inner = [at for at in range(0, len(data), 4096) if data[at] == 5]
    assert inner
    for at in inner:
        data[at : at + 4096] = bytes(4096)
    db(tmp_path).write_bytes(data)
    lost: list[Lost] = []
    with opened(tmp_path, lost) as spool:
        rows = spool.read(spool.identity.spool_id, 0, 1 << 20, 1 << 30)
    assert [row.sequence for row in rows] == list(range(1, 3001))
    assert lost == []


def test_a_last_row_that_cannot_be_read_keeps_no_spool_from_opening(tmp_path: Path) -> None:
    """Its key can, in a tree that is sound: only the spool's clock asks for more."""
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(300)])
    data = bytearray(db(tmp_path).read_bytes())
    header = data.rfind(b"\x06\x00\x07", 0, data.rfind(b"\x12\x03299"))
    data[header] = 127  # how long it is
    db(tmp_path).write_bytes(data)
    lost: list[Lost] = []
    with opened(tmp_path, lost) as spool:
        rows = spool.read(spool.identity.spool_id, 0, 1 << 20, 1 << 30)
    assert [row.sequence for row in rows if isinstance(row, Row)] == list(range(1, 300))
    assert [run.count for run in lost] == [1]


def test_without_any_identity_nothing_is_sent_and_all_is_declared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a new spool_id what the server has already would be there twice."""
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(100)])
        old = spool.identity.spool_id
    forget_identity(tmp_path)
    lost: list[Lost] = []
    with opened(tmp_path, lost) as spool:
        assert spool.identity.spool_id != old
        spool.append([body("new")])
        entries = spool.read(spool.identity.spool_id, 0, 100, 1 << 20)
    assert [type(entry) for entry in entries] == [Gap, Row]
    assert isinstance(entries[0], Gap)
    assert (entries[0].last, entries[0].reason) == (100, GapReason.SPOOL_DAMAGED)
    assert lost == [Lost(-99, 0, GapReason.SPOOL_DAMAGED, 100)]
    assert "its identity is lost" in caplog.text
    assert names(set_aside_files(tmp_path)) == ["spool.damaged-1.db"]


def forget_identity(folder: Path) -> None:
    data = db(folder).read_bytes()
    assert b'{"version"' in data
    db(folder).write_bytes(data.replace(b'{"version"', b'["version"'))
    (folder / "spool.mark").unlink()


def test_without_a_note_new_predictions_get_a_new_spool(tmp_path: Path) -> None:
    """The identity that is found may be an old one: it may have gone further."""
    server = Server()
    with opened(tmp_path) as spool:
        spool.append([body(f"{number}", 100) for number in range(100)])
        old = spool.identity.spool_id
        server.take(spool)
    (tmp_path / "spool.mark").unlink()
    data = db(tmp_path).read_bytes()
    db(tmp_path).write_bytes(bytes(100) + data[100:])
    with opened(tmp_path) as spool:
        assert spool.identity.spool_id != old
        spool.append([body("new")])
    (fork,) = fork_directories(tmp_path)
    with opened(fork) as spool:
        assert spool.identity.spool_id == old
        assert spool.identity.last == 100
    server.drain(tmp_path)
    spooled = [*(body(f"{number}", 100) for number in range(100)), body("new")]
    assert Counter(server.stored) == Counter(spooled)


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
