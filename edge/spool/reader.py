"""One SQLite file of predictions that wait for the server: how it is read.

Sequences count from 1 without holes: each one is a row of `predictions`, or lies in a run of
`gaps`, or is acknowledged (committed by the server, and deleted here). The row of `spool` says how
far they go.

SQLite does not notice a flipped byte in a value; the checksums do.
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
"""What reading a damaged file raises; `is_damage` tells."""


def is_damage(error: Exception) -> bool:
    """Say whether the file is at fault.

    Nothing here asks SQLite for something that a sound file does not have, so whatever is not about
    the disk or other processes is: a schema that is not ours, a text that is not UTF-8 (for which
    Python's own module raises errors without a code), a sequence that is there already.
    """
    if isinstance(error, sqlite3.ProgrammingError):  # such as the use of a closed file
        return False
    return getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NOT_THE_FILES_FAULT


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing, even when it is closed last.

    Raises:
        EmptyError: there is no file, or an empty one.
        sqlite3.Error: the file cannot be opened.
    """
    if not path.exists() or path.stat().st_size == 0:
        raise EmptyError("the file is gone")  # SQLite would delete the log, which may be there
    # Without a log nobody has the file open, and SQLite need not make one.
    how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{how}", uri=True, isolation_level=None
    )


class SpoolReader:
    """A spool file, as of the last `refresh`. One thread at a time.

    Args:
        path: of the file.
        db: a connection to it, which now belongs to this object. None: one that only reads.

    Attributes:
        identity: whose spool it is, and how far it goes.

    Raises:
        DamagedError: the file is not a spool, or not what was written.
        SightlineError: a later version made it (`SPOOL_TOO_NEW`).
        sqlite3.Error: SQLite cannot read it.
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
        """The gaps."""
        return self._gaps

    def refresh(self) -> None:
        """Take notice of what another process has changed since.

        Raises:
            DamagedError, SightlineError, sqlite3.Error: see above.
        """
        self._use(self._load())

    def read(
        self, after: int, max_entries: int, max_bytes: int
    ) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Return what comes after a sequence, oldest first, and the runs that are missing from it.

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

    def look(self, after: int, max_entries: int) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Do what `read` does, on what another process may be changing.

        Args:
            after: a sequence; what is acknowledged by now is left out.
            max_entries: as for `read`.

        Raises:
            DamagedError, SightlineError, sqlite3.Error: see above.
        """
        with self._moment():
            self.refresh()
            return self.read(max(after, self.identity.acknowledged), max_entries, 4 << 20)

    def spooled_at(self, *, last: bool) -> float | None:
        """Return when the first, or the last, prediction was spooled, by the spool's clock.

        Returns:
            Seconds. None: there is no prediction, or that is not known.
        """
        order = "DESC" if last else "ASC"
        row = self._db.execute(
            f"SELECT spooled_at FROM predictions ORDER BY sequence {order} LIMIT 1"  # noqa: S608 - a word of ours
        ).fetchone()
        return row[0] if row and isinstance(row[0], float) and row[0] else None

    def pages(self) -> tuple[int, int]:
        """Return the bytes that are in use, and those that the file has taken from the disk."""
        size = self._page_size = self._page_size or self._number("PRAGMA page_size")
        taken = self._number("PRAGMA page_count")
        return (taken - self._number("PRAGMA freelist_count")) * size, taken * size

    def count(self) -> int:
        """Return how many predictions there are."""
        return self._number("SELECT count(*) FROM predictions")

    def faults(self) -> list[str]:
        """Return what is wrong with the structure of the file, according to SQLite."""
        found = [text for (text,) in self._db.execute("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else [str(text) for text in found]

    def _prepare(self) -> None:
        with self._moment():
            self.refresh()

    @contextmanager
    def _moment(self) -> Iterator[None]:
        """Keep what is read together as of one moment, whatever another process writes."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):  # the file's fault, which was raised already
                self._db.execute("COMMIT")

    def _use(self, identity: Identity) -> None:
        self.identity = identity
        self._tag = tag_of(identity.spool_id)

    def _load(self) -> Identity:
        if not self._number("SELECT count(*) FROM sqlite_master"):
            raise EmptyError("it is empty")
        if self._number("PRAGMA application_id") != APPLICATION_ID:
            raise DamagedError("it is not a spool")
        row = self._db.execute("SELECT identity, checksum FROM spool").fetchone()
        text, check = row or (None, None)
        identity = identities.decode(text, check, self.path)
        # One aggregate a query: with two in one, SQLite reads every row.
        (low,) = self._db.execute("SELECT min(sequence) FROM predictions").fetchone()
        (high,) = self._db.execute("SELECT max(sequence) FROM predictions").fetchone()
        if low is not None and not identity.acknowledged < low <= high <= identity.last:
            raise DamagedError("its sequences are not what was written", identity)
        return identity

    def _number(self, statement: str) -> int:
        return int(self._db.execute(statement).fetchone()[0])

    def _rows(self, after: int, max_entries: int, max_bytes: int) -> tuple[list[Row], int]:
        """Return the rows that are intact, and through which sequence they were looked for."""
        found, size = [], 0
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
                found.append(Row(sequence, prediction))
                size += len(prediction)
            if size >= max_bytes or count == max_entries:
                rows.close()
                return found, sequence
        return found, self.identity.last
