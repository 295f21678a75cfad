"""Ships what forked processes have left behind.

A forked process spools into a folder of its own, under `forks/` in the folder of the process that
made the logger. It ships by itself while it lives; when it is gone, its folder is no longer locked.
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
    """Empties the spools that are left under a folder.

    Args:
        directory: of the process that made the logger.
        open_spool: opens the spool in a folder.
        shipper: returns what ships a spool.
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
        self._wanted = 0  # passes that somebody waits for
        self._done = 0  # of them, those that are over
        self._left_over: set[Path] = set()  # spools that the last pass could not empty
        self._shipper: Shipper | None = None

    def run(self) -> None:
        """Look for spools, again and again; the body of the thread."""
        while not self._is_stopping:
            wanted = self._wanted
            try:
                forks = fork_directories(self._directory)
                left_over = {fork for fork in forks if not self._ship_orphan(fork)}
            except Exception:  # without this thread nobody ships what is left
                logger.exception("spool: adoption goes on after an unexpected error")
                left_over = {self._directory}
            with self._changed:
                self._done, self._left_over = wanted, left_over
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._is_stopping or self._wanted > self._done, _SCAN_SECONDS
                )

    def empty(self, timeout: float | None) -> bool:
        """Ship at once what ended processes have left.

        Args:
            timeout: seconds to wait at most. None: for as long as it takes.

        Returns:
            Whether all of it is committed. What a process that is alive has is not waited for.
        """
        with self._changed:
            self._wanted += 1
            mine = self._wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_stopping or self._done >= mine, timeout)
            return self._done >= mine and not self._left_over

    def stop(self) -> None:
        """End `run` at once; the next process goes on."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        shipper = self._shipper
        if shipper is not None:
            shipper.stop()

    def _ship_orphan(self, fork: Path) -> bool:
        """Return whether nothing is left in a spool, or it is in use."""
        if self._is_stopping:
            return False
        progress = Progress(hurry=1)  # nothing is added any more that could be waited for
        try:
            spool = self._open_spool(fork, progress)
        except (SightlineError, OSError, sqlite3.Error) as error:
            logger.debug("spool %s stays where it is: %s", fork, error)
            return isinstance(error, SightlineError) and error.reason == "SPOOL_LOCKED"
        logger.info("spool: ships what a forked process left in %s", fork)
        try:
            self._ship(spool, progress)
        except BaseException:
            spool.close()  # else it could not be opened again
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
