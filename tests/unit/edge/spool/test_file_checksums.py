"""Checksums of a spool's files: bytes that differ from those that were written are found."""

import sqlite3
import zlib
from itertools import islice
from pathlib import Path

import pytest

from edge.spool.entries import Dropped, GapReason
from edge.spool.identity import VERSION, DamagedError, Identity
from edge.spool.rows import sequence_fields
from edge.spool.superblock import FileLocation, SpoolClockReading, Superblock, SuperblockFile
from edge.wire import sequence_field
from servicekit.errors import SightlineError
from tests.unit.edge.spool.spool_files import ALL, fill, name, names, opened


def crc32(text: str) -> int:
    return zlib.crc32(text.encode())


def damage(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / "spool.db") as db:
        db.execute(statement, values)
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE predictions SET prediction = x'0802' || substr(prediction, 3) WHERE sequence = 2",
        "UPDATE predictions SET prediction = zeroblob(length(prediction)) WHERE sequence = 2",
        "UPDATE predictions SET prediction = 'text' WHERE sequence = 2",
        "UPDATE predictions SET checksum = checksum + 1 WHERE sequence = 2",
        "DELETE FROM predictions WHERE sequence = 2",
    ],
)
def test_a_row_that_is_not_what_was_written_is_missing(tmp_path: Path, statement: str) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b" * 40, "c")
    file.close()
    damage(tmp_path, statement)
    file = opened(tmp_path)
    entries, missing = file.read(0, *ALL)
    assert [e.sequence for e in entries] == [1, 3]
    assert missing == [(2, 2)]


def test_rows_that_change_places_are_missing(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b")
    file.close()
    damage(tmp_path, "UPDATE predictions SET sequence = -sequence")
    damage(tmp_path, "UPDATE predictions SET sequence = 3 + sequence")
    file = opened(tmp_path)
    assert file.read(0, *ALL)[1] == [(1, 2)]


def test_the_end_of_the_file_may_be_lost_but_not_its_sequences(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b", "c")
    file.close()
    damage(tmp_path, "DELETE FROM predictions WHERE sequence > 1")
    file = opened(tmp_path)
    fill(file, "d")
    entries, missing = file.read(0, *ALL)
    assert [name(entry) for entry in entries] == ["1:a", "4:d"]
    assert missing == [(2, 3)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE spool SET identity = replace(identity, 'gate-1', 'gate-2')",
        "UPDATE spool SET checksum = 'x'",
        "UPDATE spool SET identity = x'00'",
        "DELETE FROM spool",
        "PRAGMA application_id = 1",
        "INSERT INTO predictions VALUES (7, 0.0, 0, x'00')",
        "UPDATE predictions SET sequence = 0 WHERE sequence = 1",
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused(tmp_path: Path, statement: str) -> None:
    file = opened(tmp_path)
    fill(file, "a")
    file.close()
    damage(tmp_path, statement)
    with pytest.raises(DamagedError):
        opened(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE gaps SET reason = 3 WHERE first_sequence = 2",
        "UPDATE gaps SET reason = 77 WHERE first_sequence = 2",
        "UPDATE gaps SET last_sequence = 900 WHERE first_sequence = 2",
        "UPDATE gaps SET last_sequence = 'x' WHERE first_sequence = 2",
        "UPDATE gaps SET first_sequence = 90 WHERE first_sequence = 2",
        "UPDATE gaps SET declared_at = x'00' WHERE first_sequence = 2",
        "DELETE FROM gaps WHERE first_sequence = 2",
    ],
)
def test_a_gap_that_is_not_what_was_written_is_missing(tmp_path: Path, statement: str) -> None:
    file = opened(tmp_path)
    fill(file, "a", Dropped(3, GapReason.SPOOL_AGE), "b", Dropped(1, GapReason.SPOOL_AGE))
    file.close()
    damage(tmp_path, statement)
    file = opened(tmp_path)
    entries, missing = file.read(0, *ALL)
    assert [name(entry) for entry in entries] == ["1:a", "5:b", "6-6 SPOOL_AGE"]
    assert missing == [(2, 4)]
    with file.transaction():
        assert file.give_up(2, 4, GapReason.SPOOL_DAMAGED, 1.0) == 3
    assert names(file) == ["1:a", "2-4 SPOOL_DAMAGED", "5:b", "6-6 SPOOL_AGE"]


def test_renewing_does_not_make_damage_look_sound(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b", "c")
    with file.transaction():
        file.acknowledge(1)
    file.close()
    damage(tmp_path, "UPDATE predictions SET prediction = x'0802FF' WHERE sequence = 2")
    file = opened(tmp_path)
    with file.transaction():
        file.renew()
    entries, missing = file.read(0, *ALL)
    assert [name(entry) for entry in entries] == ["2:c"]
    assert missing == [(1, 1)]


def test_a_time_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a")
    file.close()
    damage(tmp_path, "UPDATE predictions SET spooled_at = 'noon'")
    with pytest.raises(DamagedError):
        opened(tmp_path).expired(1.0)


def test_a_later_versions_file_is_left_alone(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.close()
    identity = f'{{"version": {VERSION + 1}, "whatever": "it has"}}'
    damage(tmp_path, "UPDATE spool SET identity = ?, checksum = ?", identity, crc32(identity))
    with pytest.raises(SightlineError, match="later version") as caught:
        opened(tmp_path)
    assert caught.value.reason == "SPOOL_TOO_NEW"


def test_checksums_name_the_spool_and_the_sequence(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b")
    tag = zlib.crc32(file.identity.spool_id.encode())
    file.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        rows = db.execute("SELECT sequence, prediction, checksum FROM predictions").fetchall()
    db.close()
    assert [check for _, _, check in rows] == [zlib.crc32(p) ^ n ^ tag for n, p, _ in rows]


def test_a_superblock_that_is_not_what_was_written_is_none(tmp_path: Path) -> None:
    superblock_file = SuperblockFile(tmp_path)
    superblock_file.write(
        Superblock(Identity("gate-1", "x"), 0, FileLocation(), SpoolClockReading(0.0, 0.0, ""))
    )
    text = superblock_file.path.read_bytes()
    assert superblock_file.read() is not None
    superblock_file.path.write_bytes(text.replace(b"gate-1", b"gate-2"))
    assert superblock_file.read() is None
    superblock_file.path.write_bytes(b"")
    assert superblock_file.read() is None
    superblock_file.close()


@pytest.mark.parametrize("first", [1, 100, 127, 128, 129, 16_383, 16_384, (1 << 40) + 5])
def test_sequence_fields_are_those_of_the_contract(first: int) -> None:
    fields = list(islice(sequence_fields(first), 300))
    assert fields == [sequence_field(first + number) for number in range(300)]
