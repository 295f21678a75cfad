"""Makes backups of the store that is being served, and hands them out in pieces."""

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
"""Bytes of a piece."""
_PROGRESS_SECONDS = 0.5


class CopyProgress(NamedTuple):
    """Progress of a copy."""

    rows: int
    total: int


class BackupSummary(NamedTuple):
    """What was handed out."""

    size: int
    sha256: bytes
    contents: Contents


class _GivenUpError(Exception):
    """Nobody waits for the backup any more."""


class Backups:
    """A maker of backups, one at a time. Belongs to one event loop.

    Args:
        copy: writes a verified copy to a path; calls back with how far it is.
        database: the database; copies are made beside it, and deleted. While its folder is gone,
            they are made in the system's folder for temporary files.
    """

    def __init__(self, copy: Callable[[Path, Progress], Contents], database: Path) -> None:
        self._copy = copy
        database = database.resolve()  # on the disk that has room for it, where a link leads there
        self._database = database
        self._running: asyncio.Future[Contents] | None = None
        self._given_up = threading.Event()
        # Hidden, and named as nobody names a backup of their own: those must not be deleted.
        self._prefix = f".{database.name}.unfinished-backup-"
        for left in database.parent.glob(f"{self._prefix}*"):  # of a process that died
            left.unlink(missing_ok=True)

    async def run(self) -> AsyncGenerator[CopyProgress | bytes | BackupSummary, None]:
        """Yield how far the copy is, then its bytes, then what it holds.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `BACKUP_RUNNING`; UNAVAILABLE, `DRAINING`; or what
                the copy raises.
        """
        if self._running is not None:
            raise SightlineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "BACKUP_RUNNING",
                "another backup is being made: try again when it has ended",
                retry_after=10.0,
            )
        path = self._folder() / f"{self._prefix}{uuid.uuid4()}"
        loop, moves = asyncio.get_running_loop(), asyncio.Queue[CopyProgress]()
        self._given_up.clear()

        def progress(rows: int, of: int) -> None:
            if self._given_up.is_set():
                raise _GivenUpError
            loop.call_soon_threadsafe(moves.put_nowait, CopyProgress(rows, of))

        started = time.monotonic()
        copying = self._running = loop.run_in_executor(None, self._copy, path, progress)
        try:
            async for copied in _until(copying, moves):
                yield copied
            try:
                contents = await copying
            except _GivenUpError:
                raise draining_error() from None
            logger.info("backup: %s copied in %.1f s", contents, time.monotonic() - started)
            async for piece in _pieces(path, contents):
                yield piece
        finally:
            self._given_up.set()
            copying.add_done_callback(lambda _: self._end(path))

    def give_up(self) -> None:
        """End the backup that is being made with UNAVAILABLE, unless it is being sent already."""
        self._given_up.set()

    async def close(self) -> None:
        """Give up the backup that is being made, and return when it has ended."""
        self.give_up()
        if self._running is not None:
            await asyncio.wait([self._running])

    def _folder(self) -> Path:
        folder = self._database.parent
        return folder if folder.is_dir() else Path(tempfile.gettempdir())

    def _end(self, path: Path) -> None:
        if self._running is not None and not self._running.cancelled():
            self._running.exception()  # it was told, or nobody waits for it
        self._running = None
        path.unlink(missing_ok=True)


async def _until(
    copying: asyncio.Future[Contents], moves: asyncio.Queue[CopyProgress]
) -> AsyncIterator[CopyProgress]:
    """Yield the last news every half second, until the copy is made."""
    while not copying.done():
        await asyncio.wait([copying], timeout=_PROGRESS_SECONDS)
        last = None
        while not moves.empty():
            last = moves.get_nowait()
        if last is not None:
            yield last


async def _pieces(path: Path, contents: Contents) -> AsyncIterator[bytes | BackupSummary]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK):
            digest.update(piece)
            size += len(piece)
            yield piece
    yield BackupSummary(size, digest.digest(), contents)
