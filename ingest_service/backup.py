"""Backups of the running store, streamed to the caller in chunks."""

import asyncio
import hashlib
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import grpc

from ingest_service.receive.group_commit import draining_error
from ingest_service.store.duckdb.database_copy import Contents, Progress
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

CHUNK = 512 * 1024
"""Size of a chunk of the file, bytes."""
_PROGRESS_SECONDS = 0.5


class CopyProgress(NamedTuple):
    """Progress of a copy."""

    rows: int
    total: int


class BackupSummary(NamedTuple):
    """The file of a backup and its contents."""

    size: int
    sha256: bytes
    contents: Contents


class _BackupCancelledError(Exception):
    """The backup was cancelled: its caller has gone, or the service is stopping."""


class Backups:
    """A source of backups, one at a time. Used from one event loop.

    Args:
        copy: writes a verified copy to a path, and reports its progress to the callback.
        database: path of the database. Copies are written beside it and deleted afterwards. If its
            folder is gone, they are written to the system's folder for temporary files.
    """

    def __init__(self, copy: Callable[[Path, Progress], Contents], database: Path) -> None:
        self._copy = copy
        database = database.resolve()  # follow links to the disk with enough space
        self._database = database
        self._running: asyncio.Future[Contents] | None = None
        self._cancelled = threading.Event()
        # A hidden name that no user gives to a backup: those must not be deleted.
        self._prefix = f".{database.name}.unfinished-backup-"
        for leftover in database.parent.glob(f"{self._prefix}*"):  # of a killed process
            leftover.unlink(missing_ok=True)

    async def run(self) -> AsyncGenerator[CopyProgress | bytes | BackupSummary, None]:
        """Yield the progress of the copy, then its bytes, then a summary.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `BACKUP_RUNNING`; UNAVAILABLE, `DRAINING`; or the
                error of the copy.
        """
        if self._running is not None:
            raise SightlineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "BACKUP_RUNNING",
                "another backup is running: try again when it has ended",
                retry_after=10.0,
            )
        path = self._folder() / f"{self._prefix}{uuid.uuid4()}"
        loop, moves = asyncio.get_running_loop(), asyncio.Queue[CopyProgress]()
        self._cancelled.clear()

        def progress(rows: int, total: int) -> None:
            if self._cancelled.is_set():
                raise _BackupCancelledError
            loop.call_soon_threadsafe(moves.put_nowait, CopyProgress(rows, total))

        started = time.monotonic()
        copying = self._running = loop.run_in_executor(None, self._copy, path, progress)
        try:
            async for copied in _until(copying, moves):
                yield copied
            try:
                contents = await copying
            except _BackupCancelledError:
                raise draining_error() from None
            logger.info("backup: %s copied in %.1f s", contents, time.monotonic() - started)
            async for chunk in _chunks(path, contents):
                yield chunk
        finally:
            self._cancelled.set()
            copying.add_done_callback(lambda _: self._end(path))

    def cancel(self) -> None:
        """End the running backup with UNAVAILABLE, unless its file is being sent already."""
        self._cancelled.set()

    async def close(self) -> None:
        """Cancel the running backup, and return when it has ended."""
        self.cancel()
        if self._running is not None:
            await asyncio.wait([self._running])

    def _folder(self) -> Path:
        folder = self._database.parent
        return folder if folder.is_dir() else Path(tempfile.gettempdir())

    def _end(self, path: Path) -> None:
        if self._running is not None and not self._running.cancelled():
            self._running.exception()  # reported by `run`, or its caller has gone
        self._running = None
        path.unlink(missing_ok=True)


async def _until(
    copying: asyncio.Future[Contents], moves: asyncio.Queue[CopyProgress]
) -> AsyncIterator[CopyProgress]:
    """Yield the latest progress every half second, until the copy is done."""
    while not copying.done():
        await asyncio.wait([copying], timeout=_PROGRESS_SECONDS)
        last = None
        while not moves.empty():
            last = moves.get_nowait()
        if last is not None:
            yield last


async def _chunks(path: Path, contents: Contents) -> AsyncIterator[bytes | BackupSummary]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    yield BackupSummary(size, digest.digest(), contents)
