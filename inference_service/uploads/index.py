"""Index of the uploads by owner, with expiry, in a SQLite database that processes may share.

The files of the store are moved and removed while the database's write lock is held. Index and
folder can therefore differ only if a process was killed in between.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference_service.uploads.errors import UploadStoreError, quota_exceeded, store_full
from servicekit.private_files import make_private

_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    owner TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    size INTEGER NOT NULL,
    until REAL NOT NULL,      -- Unix seconds
    PRIMARY KEY (owner, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS uploads_content ON uploads (sha256, size, until);
CREATE INDEX IF NOT EXISTS uploads_until ON uploads (until);
CREATE TABLE IF NOT EXISTS incoming (
    part TEXT PRIMARY KEY,    -- its file
    owner TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    size INTEGER NOT NULL,    -- of the whole image
    charged INTEGER NOT NULL  -- to the owner's quota: the size, or 0
) STRICT, WITHOUT ROWID;
"""
_OTHERS = """
SELECT until, size FROM uploads WHERE owner = :owner AND until > :now AND sha256 <> :sha256
ORDER BY until
"""
_STORED_SIZE = "SELECT size FROM uploads WHERE owner = :owner AND sha256 = :sha256 AND until > :now"
_OWN_INCOMING = """
SELECT coalesce(sum(charged), 0), count(*) FILTER (WHERE charged > 0),
    count(*) FILTER (WHERE sha256 = :sha256)
FROM incoming WHERE owner = :owner
"""
_STORED = "SELECT max(until), size FROM uploads GROUP BY sha256 ORDER BY 1"
_TOTAL = """
SELECT coalesce((SELECT sum(size) FROM (SELECT DISTINCT sha256, size FROM uploads)), 0)
    + coalesce((SELECT sum(size) FROM incoming), 0)
"""
_RESERVE = "INSERT INTO incoming VALUES (:part, :owner, :sha256, :size, :charged)"
_RELEASE = "DELETE FROM incoming WHERE part = :part"
_PUT = """
INSERT INTO uploads VALUES (:owner, :sha256, :size, :until)
ON CONFLICT DO UPDATE SET until = max(until, excluded.until)
"""
_SHORTEN = "UPDATE uploads SET until = :latest WHERE until > :latest"
_EXPIRE = """
DELETE FROM uploads WHERE (owner, sha256) IN
    (SELECT owner, sha256 FROM uploads WHERE until <= :now ORDER BY until LIMIT :limit)
RETURNING sha256
"""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits on the stored uploads."""

    max_bytes: int
    """Bytes of all callers together."""
    quota_bytes: int
    """Bytes of one caller."""
    quota_count: int
    """Number of images of one caller."""
    disk_reserve_bytes: int
    """Free disk space that uploads must leave, bytes."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An upload in progress."""

    part: str
    """Name of the file that its bytes are written to."""
    owner: str
    """Identity of the uploader, from `Caller.identity`."""
    name: str
    """Name of the uploader in messages."""
    sha256: bytes
    """Declared SHA-256."""
    size: int
    """Declared size in bytes."""


class Index:
    """The database of uploads. Threads may share it; `writing` admits one at a time.

    Args:
        path: the file; created if missing.

    Raises:
        UploadStoreError: it cannot be opened, or is not a SQLite database.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        with _as_store_error(f"cannot open {path}"):
            make_private(path)
            self._database = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            # A power failure may lose the last uploads: their references are then unknown or gone.
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock, and commit if the block ends without an exception.

        Raises:
            UploadStoreError: the database failed.
        """
        with self._lock, _as_store_error("the index of uploads does not work"):
            # IMMEDIATE: wait for another process here and not within the transaction.
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                yield

    def reserve(self, arrival: Arrival, limits: StoreLimits, now: float) -> None:
        """Reserve space for an upload before its bytes arrive; only within `writing`.

        An image that the caller has already uploaded is not charged to its quota again, so that an
        upload whose response was lost can be repeated.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED: `UPLOAD_QUOTA_EXCEEDED` or `UPLOAD_STORE_FULL`,
                with the seconds until enough space has expired.
        """
        values = {
            "part": arrival.part,
            "owner": arrival.owner,
            "sha256": arrival.sha256,
            "size": arrival.size,
            "now": now,
        }
        charged = self._charge(arrival, values, limits, now)
        (total,) = self._database.execute(_TOTAL).fetchone()
        excess = total + arrival.size - limits.max_bytes
        if excess > 0:
            wait = _wait(self._database.execute(_STORED), excess, 0, now)
            raise store_full(f"{limits.max_bytes} bytes in total", wait)
        self._database.execute(_RESERVE, values | {"charged": charged})

    def put(self, arrival: Arrival, until: float) -> None:
        """Record a complete upload, which expires at `until`; only within `writing`."""
        self._database.execute(
            _PUT,
            {
                "owner": arrival.owner,
                "sha256": arrival.sha256,
                "size": arrival.size,
                "until": until,
            },
        )
        self.release(arrival.part)

    def release(self, part: str) -> None:
        """Release the reservation of an unfinished upload; only within `writing`."""
        self._database.execute(_RELEASE, {"part": part})

    def shorten(self, latest: float) -> None:
        """Limit the expiry of all uploads to `latest`; only within `writing`.

        An upload that was stored while the clock was ahead would otherwise use its owner's quota
        for too long.
        """
        self._database.execute(_SHORTEN, {"latest": latest})

    def expire(self, now: float, limit: int) -> tuple[int, list[bytes]]:
        """Delete up to `limit` expired uploads; only within `writing`.

        Returns:
            Their number, and the SHA-256 of those contents that no other upload uses.
        """
        expired = self._database.execute(_EXPIRE, {"now": now, "limit": limit}).fetchall()
        return len(expired), [sha256 for (sha256,) in set(expired) if not self.holds(sha256)]

    def holds(self, sha256: bytes) -> bool:
        """Return True if any caller has uploaded this content; only within `writing`."""
        rows = self._database.execute("SELECT 1 FROM uploads WHERE sha256 = ?", [sha256])
        return rows.fetchone() is not None

    def parts(self) -> set[str]:
        """Return the file names of uploads in progress; only within `writing`."""
        return {part for (part,) in self._database.execute("SELECT part FROM incoming")}

    def close(self) -> None:
        """Wait for a writer and close the database."""
        with self._lock:
            self._database.close()

    def _charge(
        self, arrival: Arrival, values: dict[str, object], limits: StoreLimits, now: float
    ) -> int:
        """Return the bytes that the upload uses of its owner's quota."""
        others = self._database.execute(_OTHERS, values).fetchall()
        stored_row = self._database.execute(_STORED_SIZE, values).fetchone()
        incoming_bytes, incoming_count, duplicates = self._database.execute(
            _OWN_INCOMING, values
        ).fetchone()
        if stored_row and not duplicates:
            return 0
        stored = sum(size for _, size in others) + (stored_row[0] if stored_row else 0)
        excess_count = len(others) + bool(stored_row) + incoming_count + 1 - limits.quota_count
        excess_bytes = stored + incoming_bytes + arrival.size - limits.quota_bytes
        if excess_count > 0:
            wait = _wait(others, 0, excess_count, now)
            raise quota_exceeded(arrival.name, f"{limits.quota_count} images", wait)
        if excess_bytes > 0:
            wait = _wait(others, excess_bytes, 0, now)
            raise quota_exceeded(arrival.name, f"{limits.quota_bytes} bytes of images", wait)
        return arrival.size


def _wait(rows: Iterable[tuple[float, int]], size: int, count: int, now: float) -> float:
    """Return the seconds until `size` bytes and `count` uploads of the rows have expired.

    0 if all rows are not enough, because uploads in progress use the space; they may end soon.
    """
    for until, row_size in rows:
        size -= row_size
        count -= 1
        if size <= 0 and count <= 0:
            return max(until - now, 0.0)
    return 0.0


@contextmanager
def _as_store_error(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UploadStoreError(f"{what}: {error}") from error
