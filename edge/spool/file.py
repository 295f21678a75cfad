"""One SQLite file of predictions that wait for the server: what is in it, and nothing about when.

Sequences count from 1 without holes: each one is a row of `predictions`, or lies in a run of
`gaps`, or is acknowledged (committed by the server, and deleted here). The row of `spool` says how
far they go, so that a file whose end is lost cannot give the same sequence out twice.

SQLite does not notice a flipped byte in a value; the checksums do.
"""

import json
import sqlite3
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc

from edge.log.encode import sequence_field
from edge.log.entries import Dropped, Entry, Gap, GapReason, Row
from edge.spool import gaps as spool_gaps
from edge.spool.gaps import GapTable
from edge.spool.rows import checksum, is_intact, merge, renumbered
from servicekit.errors import SightlineError

VERSION = 1
_APPLICATION_ID = 0x53_69_67_74  # "Sigt", for file(1)
_SCHEMA = """
CREATE TABLE spool (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity TEXT NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE predictions (
    sequence INTEGER PRIMARY KEY,
    spooled_at REAL NOT NULL,
    checksum INTEGER NOT NULL,
    prediction BLOB NOT NULL
);
"""


class DamagedError(Exception):
    """The file holds something that was not written to it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose spool it is, and how far its sequences go."""

    device_id: str
    spool_id: str
    """A UUID, born with the spool."""
    acknowledged: int = 0
    """Every sequence up to this one is committed by the server and deleted here."""
    last: int = 0
    """The last sequence that was given out."""

    @property
    def pending(self) -> int:
        """How many sequences still wait for the server."""
        return self.last - self.acknowledged


class SpoolFile:
    """An open spool file. One thread at a time; every change happens inside `transaction`.

    Args:
        path: the file; made if it is missing or empty.
        device_id: whose spool a new file becomes.

    Attributes:
        identity: as of the last change.

    Raises:
        DamagedError: the file is not a spool that was written by this module.
        sqlite3.Error: SQLite cannot use it.
    """

    def __init__(self, path: Path, device_id: str) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._gaps = GapTable(self._db)
        try:
            self._configure()
            self.identity = self._load() if self._is_made() else self._make(device_id)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Closes the file; SQLite then moves the write-ahead log into it."""
        self._db.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Makes the changes inside it happen together or not at all.

        Args:
            durable: False: a power failure may undo them (a crash of the process may not).
        """
        before = self.identity
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            if self.identity != before:
                self._store_identity()
            self._db.execute("COMMIT")
        except BaseException:
            self.identity = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def append(
        self, entries: Sequence[bytes | Dropped], spooled_at: float, declared_at: float
    ) -> None:
        """Gives each entry its sequence and keeps it.

        Args:
            entries: bodies of predictions, and what was dropped between them.
            spooled_at: seconds on the caller's clock, for `expired`; 0: that clock is not set.
            declared_at: Unix seconds, for the gaps.
        """
        sequence, rows = self.identity.last, []
        for entry in entries:
            if isinstance(entry, Dropped):
                self._gaps.declare(sequence + 1, sequence + entry.count, entry.reason, declared_at)
                sequence += entry.count
            else:
                sequence += 1
                prediction = sequence_field(sequence) + entry
                rows.append((sequence, spooled_at, checksum(prediction), prediction))
        self._db.executemany("INSERT INTO predictions VALUES (?, ?, ?, ?)", rows)
        self.identity = replace(self.identity, last=sequence)

    def read(
        self, after: int, max_entries: int, max_bytes: int
    ) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Returns what comes after a sequence, oldest first, and the runs that are missing from it.

        Args:
            after: >= `identity.acknowledged`.
            max_entries: about how many rows, and how many gaps, at most, >= 1.
            max_bytes: of predictions; one is returned whatever its size.
        """
        gaps = self._gaps.after(after, max_entries)
        rows, through = self._rows(after, max_entries, max_bytes)
        if len(gaps) == max_entries:
            through = min(through, gaps[-1].last)
        return merge(after, through, rows, gaps)

    def give_up(self, first: int, last: int, reason: GapReason, declared_at: float) -> int:
        """Turns a run of sequences, both ends included, into a gap.

        Returns:
            How many of them were in no gap before.
        """
        self._db.execute("DELETE FROM predictions WHERE sequence BETWEEN ? AND ?", (first, last))
        given_up = 0
        for known in [
            *self._gaps.within(first, last),
            Gap(last + 1, last + 1, reason, declared_at),
        ]:
            if first < known.first:
                self._gaps.declare(first, known.first - 1, reason, declared_at)
                given_up += known.first - first
            first = max(first, known.last + 1)
        return given_up

    def acknowledge(self, through: int) -> int:
        """Deletes what the server has committed; returns how many predictions that were."""
        deleted = self._db.execute(
            "DELETE FROM predictions WHERE sequence <= ?", (through,)
        ).rowcount
        self._gaps.acknowledge(through)
        self.identity = replace(self.identity, acknowledged=through)
        return deleted

    def rewind(self, through: int, declared_at: float) -> None:
        """Owes the server again what it has lost: as a gap, for it is deleted here."""
        first, last = through + 1, self.identity.acknowledged
        self._gaps.declare(first, last, GapReason.RELEASED, declared_at)
        self.identity = replace(self.identity, acknowledged=through)

    def renew(self) -> None:
        """Becomes another spool: a new spool_id, in which what is pending counts from 1."""
        shift = self.identity.acknowledged
        for name, arguments, function in (
            ("renumbered", 3, renumbered),
            ("checksum", 1, checksum),
            ("is_intact", 3, is_intact),
        ):
            self._db.create_function(name, arguments, function)
        # What is damaged must not get a new checksum: it will be missing instead.
        self._db.execute(
            "DELETE FROM predictions WHERE NOT is_intact(sequence, checksum, prediction)"
        )
        self._db.execute(
            "UPDATE predictions SET prediction = renumbered(prediction, sequence, sequence - ?)",
            (shift,),
        )
        self._db.execute(
            "UPDATE predictions SET sequence = sequence - ?, checksum = checksum(prediction)",
            (shift,),
        )
        self._gaps.shift(shift)
        self.identity = replace(
            self.identity,
            spool_id=str(uuid.uuid4()),
            acknowledged=0,
            last=self.identity.last - shift,
        )

    def expired(self, cutoff: float) -> int:
        """Returns a sequence, of those that were spooled before a time, up to which all may go.

        Args:
            cutoff: on the caller's clock.

        Returns:
            The last one, if they are not too many for one look; 0: there is none.
        """
        through = 0
        # At most so many at a time: those without a time could make it look through all of them.
        rows = self._db.execute(
            "SELECT sequence, spooled_at FROM predictions ORDER BY sequence LIMIT 10000"
        )
        for sequence, spooled_at in rows:
            if not isinstance(spooled_at, float):
                raise DamagedError("its times are not what was written")
            if spooled_at >= cutoff:
                break
            if spooled_at:
                through = sequence
        rows.close()
        return through

    def oldest(self, size: int) -> int:
        """Returns the last of the oldest sequences that together have this many bytes; 0: none."""
        through = 0
        rows = self._db.execute(
            "SELECT sequence, coalesce(length(prediction), 0) FROM predictions ORDER BY sequence"
        )
        for sequence, length in rows:
            through = sequence
            size -= length
            if size <= 0:
                break
        rows.close()
        return through

    def pages(self) -> tuple[int, int]:
        """Returns the bytes that are in use, and those that the file has taken from the disk."""
        size = self._number("PRAGMA page_size")
        taken = self._number("PRAGMA page_count")
        return (taken - self._number("PRAGMA freelist_count")) * size, taken * size

    def shrink(self, pages: int) -> None:
        """Gives up to this many unused pages back to the disk; outside of a transaction."""
        # The pragma has to be stepped page by page, and `execute` steps what has no columns once.
        self._db.executescript(f"PRAGMA incremental_vacuum({pages})")

    def _configure(self) -> None:
        # Before the first table, or it has no effect: lets the file shrink without being rewritten.
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA journal_size_limit = {4 << 20}")
        self._db.execute(
            "PRAGMA fullfsync = ON"
        )  # macOS: its fsync alone stops at the drive's cache

    def _is_made(self) -> bool:
        return self._number("SELECT count(*) FROM sqlite_master") > 0

    def _make(self, device_id: str) -> Identity:
        self.identity = Identity(device_id, str(uuid.uuid4()))
        self._db.execute("BEGIN IMMEDIATE")
        for statement in (*_SCHEMA.split(";"), spool_gaps.SCHEMA):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._store_identity()
        self._db.execute("COMMIT")
        return self.identity

    def _load(self) -> Identity:
        if self._number("PRAGMA application_id") != _APPLICATION_ID:
            raise DamagedError("not a spool")
        row = self._db.execute("SELECT identity, checksum FROM spool").fetchone()
        if row is None or not isinstance(row[0], str) or zlib.crc32(row[0].encode()) != row[1]:
            raise DamagedError("its identity is not what was written")
        fields = json.loads(row[0])
        if fields.pop("version") > VERSION:
            raise SightlineError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "SPOOL_TOO_NEW",
                f"spool_dir: {self.path} was made by a later version of sightline",
            )
        identity = Identity(**fields)
        # One aggregate a query: with two in one, SQLite reads every row.
        (low,) = self._db.execute("SELECT min(sequence) FROM predictions").fetchone()
        (high,) = self._db.execute("SELECT max(sequence) FROM predictions").fetchone()
        if low is not None and not identity.acknowledged < low <= high <= identity.last:
            raise DamagedError("its sequences are not what was written")
        return identity

    def _store_identity(self) -> None:
        identity = json.dumps({"version": VERSION} | asdict(self.identity))
        self._db.execute(
            "INSERT OR REPLACE INTO spool VALUES (1, ?, ?)",
            (identity, zlib.crc32(identity.encode())),
        )

    def _number(self, statement: str) -> int:
        return int(self._db.execute(statement).fetchone()[0])

    def _rows(self, after: int, max_entries: int, max_bytes: int) -> tuple[list[Row], int]:
        """Returns the rows that are intact, and through which sequence they were looked for."""
        found, size = [], 0
        rows = self._db.execute(
            "SELECT sequence, checksum, prediction FROM predictions"
            " WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (after, max_entries),
        )
        count = 0
        for count, (sequence, check, prediction) in enumerate(rows, 1):
            if is_intact(sequence, check, prediction):
                found.append(Row(sequence, prediction))
                size += len(prediction)
            if size >= max_bytes or count == max_entries:
                rows.close()
                return found, sequence
        return found, self.identity.last
