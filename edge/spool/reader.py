"""Read access to the spool file, an SQLite database of predictions that wait for the server.

Sequences start at 1 and have no holes. Each is a row of `predictions`, or lies in a run of `gaps`,
or is acknowledged: committed by the server and deleted here. The row of `spool` holds their range.

SQLite does not detect a flipped bit in a value, so each row has a checksum.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from edge.spool import identity as identities
from edge.spool.entries import Entry, Row
from edge.spool.gaps import GapTable
from edge.spool.identity import DamagedError, EmptyError, Identity
from edge.spool.rows import is_intact, is_intact_unbound, merge, tag_of

APPLICATION_ID = 0x53_69_67_74  # "Sigt", for file(1)
_NOT_THE_FILES_FAULT = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
SUSPICIOUS = (sqlite3.DatabaseError, UnicodeDecodeError, DamagedError)
"""Errors that reading a damaged file may raise; `is_damage` decides whether it is damaged."""


def is_damage(error: Exception) -> bool:
    """Return True if an error means that the file is damaged.

    All statements here succeed on a sound file. So every error that does not come from the disk or
    another process is damage: a foreign schema, text that is not UTF-8 (for which the sqlite3
    module raises errors without a code), a duplicate sequence.
    """
    if isinstance(error, sqlite3.ProgrammingError):  # such as the use of a closed file
        return False
    return getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NOT_THE_FILES_FAULT


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, which does not checkpoint the log even when it closes last.

    Raises:
        EmptyError: the file is missing or empty.
        sqlite3.Error: the file cannot be opened.
    """
    if not path.exists() or path.stat().st_size == 0:
        raise EmptyError("the file is missing or empty")  # SQLite would delete a log beside it
    # Without a log no process has the file open, and SQLite must not create one.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{mode}", uri=True, isolation_level=None
    )


class SpoolReader:
    """A spool file opened for reading, as of the last `refresh`. For one thread at a time.

    Args:
        path: the spool file.
        db: a connection to the file, which this object will close. None: open one for reading.

    Attributes:
        identity: the identity of the spool.

    Raises:
        DamagedError: the file is not a spool, or its contents are not what was written.
        SightlineError: a later version wrote the file (`SPOOL_TOO_NEW`).
        sqlite3.Error: SQLite cannot read the file.
    """

    identity: Identity

    def __init__(self, path: Path, db: sqlite3.Connection | None = None) -> None:
        self.path = path
        self._db = db or connect_to_read(path)
        self._gaps = GapTable(self._db)
        self._page_size = 0  # not known
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def gaps(self) -> GapTable:
        """The table of gaps."""
        return self._gaps

    def refresh(self) -> None:
        """Load the identity again, since another process may have changed it.

        Raises:
            DamagedError, SightlineError, sqlite3.Error: see the class.
        """
        self._use(self._load())

    def read(
        self, after: int, max_entries: int, max_bytes: int
    ) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Return the entries after a sequence, oldest first, and the runs missing between them.

        Args:
            after: a sequence >= `identity.acknowledged`.
            max_entries: limit for the rows, and for the gaps, >= 1.
            max_bytes: limit for the size of the predictions; the first is returned in any case.
        """
        gaps = self._gaps.after(after, max_entries)
        rows, through = self._rows(after, max_entries, max_bytes)
        if len(gaps) == max_entries:
            through = min(through, gaps[-1].last)
        return merge(after, through, rows, gaps)

    def look(self, after: int, max_entries: int) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Return what `read` does, for a file that another process may be changing.

        Args:
            after: a sequence. Entries that are acknowledged by now are skipped.
            max_entries: as for `read`.

        Raises:
            DamagedError, SightlineError, sqlite3.Error: see the class.
        """
        with self._snapshot():
            self.refresh()
            return self.read(max(after, self.identity.acknowledged), max_entries, 4 << 20)

    def spooled_at(self, *, last: bool) -> float | None:
        """Return the time when the first or last prediction was spooled, by the spool's clock.

        Returns:
            The time in seconds. None: there is no prediction, or its time is not known.
        """
        order = "DESC" if last else "ASC"
        row = self._db.execute(
            f"SELECT spooled_at FROM predictions ORDER BY sequence {order} LIMIT 1"  # noqa: S608 - a constant
        ).fetchone()
        return row[0] if row and isinstance(row[0], float) and row[0] else None

    def pages(self) -> tuple[int, int]:
        """Return the bytes in use and the size of the file."""
        size = self._page_size = self._page_size or self._number("PRAGMA page_size")
        pages = self._number("PRAGMA page_count")
        return (pages - self._number("PRAGMA freelist_count")) * size, pages * size

    def count(self) -> int:
        """Return the number of predictions."""
        return self._number("SELECT count(*) FROM predictions")

    def faults(self) -> list[str]:
        """Return the structural faults of the file that SQLite reports."""
        lines = [str(text) for (text,) in self._db.execute("PRAGMA integrity_check(20)")]
        return [] if lines == ["ok"] else lines

    def _prepare(self) -> None:
        with self._snapshot():
            self.refresh()

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Read from one snapshot, whatever another process writes meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):  # the damage was reported already
                self._db.execute("COMMIT")

    def _use(self, identity: Identity) -> None:
        self.identity = identity
        self._tag = tag_of(identity.spool_id)

    def _load(self) -> Identity:
        if not self._number("SELECT count(*) FROM sqlite_master"):
            raise EmptyError("it has no tables")
        if self._number("PRAGMA application_id") != APPLICATION_ID:
            raise DamagedError("its application_id is not that of a spool")
        row = self._db.execute("SELECT identity, checksum FROM spool").fetchone()
        text, check = row or (None, None)
        identity = identities.decode(text, check, self.path)
        # One aggregate per query: for two in one query, SQLite reads every row.
        (low,) = self._db.execute("SELECT min(sequence) FROM predictions").fetchone()
        (high,) = self._db.execute("SELECT max(sequence) FROM predictions").fetchone()
        if low is not None and not identity.acknowledged < low <= high <= identity.last:
            raise DamagedError(
                "its sequences are outside the range that its identity records", identity
            )
        return identity

    def _number(self, statement: str) -> int:
        return int(self._db.execute(statement).fetchone()[0])

    def _rows(self, after: int, max_entries: int, max_bytes: int) -> tuple[list[Row], int]:
        """Return the intact rows, and the sequence up to which the table was read."""
        intact, size = list[Row](), 0
        rows = self._db.execute(
            "SELECT sequence, checksum, prediction FROM predictions"
            " WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (after, max_entries),
        )
        count, tag, unbound = 0, self._tag, self.identity.unbound
        for count, (sequence, check, prediction) in enumerate(rows, 1):
            if is_intact(sequence, check, prediction, tag) or (
                sequence <= unbound and is_intact_unbound(sequence, check, prediction)
            ):
                intact.append(Row(sequence, prediction))
                size += len(prediction)
            if size >= max_bytes or count == max_entries:
                rows.close()
                return intact, sequence
        return intact, self.identity.last
