"""Whatever happens to the bytes of a spool: what is readable is sent once, the rest is declared."""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.spool.caps import Lost
from edge.spool.directories import fork_directories
from edge.spool.entries import Gap, GapReason, Row
from edge.spool.recovery.aside import names, set_aside_files
from edge.spool.spool import Spool
from tests.unit.edge.spool.damaging import Server, body, crash, db, flip, header, opened, put, wal

SEEDS = int(os.environ.get("SPOOL_SEEDS", "5"))


Damage = Callable[[random.Random, Path], None]


def wipe(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data)) // 4096 * 4096
    data[start : start + 4096 * chance.choice([1, 2, 8])] = bytes(4096)
    path.write_bytes(data)


def cut(chance: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


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
