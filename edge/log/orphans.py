"""Shipping of orphaned spools, which forked processes have left behind.

A forked process spools into a folder of its own below `forks/`, in the folder of the process that
created the logger. It ships that spool itself; when it has ended, the folder is no longer locked.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from edge.ship.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.directories import fork_directories, new_fork_directory
from edge.spool.spool import Spool
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

__all__ = ["OrphanShipper", "fork_directories", "new_fork_directory"]

_SCAN_SECONDS = 1.0


class OrphanShipper:
    """A worker that ships the orphaned spools below a folder and then deletes them.

    Args:
        directory: spool folder of the process that created the logger.
        open_spool: function that opens the spool in a folder.
        shipper: function that returns a shipper for a spool.
    """

    def __init__(
        self,
        directory: Path,
        open_spool: Callable[[Path, Progress], Spool],
        shipper: Callable[[Spool, Progress], Shipper],
    ) -> None:
        self._directory = directory
        self._open_spool = open_spool
        self._make_shipper = shipper
        self._changed = threading.Condition()
        self._is_stopping = False
        self._requested = 0  # number of passes that callers have requested
        self._done = 0  # number of requested passes that are complete
        self._not_empty: set[Path] = set()  # spools that the last pass could not empty
        self._shipper: Shipper | None = None

    def run(self) -> None:
        """Look for orphaned spools until stopped; the body of the thread."""
        while not self._is_stopping:
            requested = self._requested
            try:
                forks = fork_directories(self._directory)
                not_empty = {fork for fork in forks if not self._ship_orphan(fork)}
            except Exception:  # this thread must not end: it is the only one that ships orphans
                logger.exception(
                    "spool: unexpected error while shipping orphaned spools, trying again"
                )
                not_empty = {self._directory}
            with self._changed:
                self._done, self._not_empty = requested, not_empty
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._is_stopping or self._requested > self._done, _SCAN_SECONDS
                )

    def empty(self, timeout: float | None) -> bool:
        """Ship the orphaned spools at once.

        Args:
            timeout: seconds to wait at most. None: without a limit.

        Returns:
            True if all of them are committed. Spools of running processes do not count.
        """
        with self._changed:
            self._requested += 1
            request = self._requested
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_stopping or self._done >= request, timeout)
            return self._done >= request and not self._not_empty

    def stop(self) -> None:
        """End `run` at once. The next process continues."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        shipper = self._shipper
        if shipper is not None:
            shipper.stop()

    def _ship_orphan(self, fork: Path) -> bool:
        """Ship one spool; return True if it is empty and deleted, or in use by another process."""
        if self._is_stopping:
            return False
        progress = Progress(hurry=1)  # nothing more will be added, so do not wait for full batches
        try:
            spool = self._open_spool(fork, progress)
        except (SightlineError, OSError, sqlite3.Error) as error:
            logger.debug("spool %s cannot be opened: %s", fork, error)
            return isinstance(error, SightlineError) and error.reason == "SPOOL_LOCKED"
        logger.info("spool: shipping the orphaned spool %s", fork)
        try:
            self._ship(spool, progress)
        except BaseException:
            spool.close()  # otherwise it could not be opened again
            raise
        if spool.identity.pending:
            spool.close()
            return False
        spool.remove()
        return True

    def _ship(self, spool: Spool, progress: Progress) -> None:
        self._shipper = shipper = self._make_shipper(spool, progress)
        if not self._is_stopping:
            shipper.run(until_empty=True)
