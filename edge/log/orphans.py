"""Ships what forked processes have left behind.

A forked process spools into a folder of its own, under `forks/` in the folder of the process that
made the logger. It ships by itself while it lives; when it is gone, its folder is no longer locked.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from edge.log.progress import Progress
from edge.ship.shipper import Shipper
from edge.spool.homes import homes, new_home
from edge.spool.spool import Spool
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

__all__ = ["Adopter", "homes", "new_home"]

_SCAN_SECONDS = 10.0


class Adopter:
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
        self._stopping = threading.Event()
        self._shipper: Shipper | None = None

    def run(self) -> None:
        """Looks for spools, again and again; the body of the thread."""
        while not self._stopping.is_set():
            try:
                for home in homes(self._directory):
                    self._adopt(home)
            except Exception:  # without this thread nobody ships what is left
                logger.exception("spool: adoption goes on after an unexpected error")
            self._stopping.wait(_SCAN_SECONDS)

    def stop(self) -> None:
        """Ends `run` at once; the next process goes on."""
        self._stopping.set()
        shipper = self._shipper
        if shipper is not None:
            shipper.stop()

    def _adopt(self, home: Path) -> None:
        progress = Progress()
        try:
            spool = self._open_spool(home, progress)
        except (SightlineError, OSError, sqlite3.Error) as error:
            logger.debug("spool %s stays where it is: %s", home, error)
            return
        logger.info("spool: ships what a forked process left in %s", home)
        try:
            self._ship(spool, progress)
        except BaseException:
            spool.close()  # else it could not be opened again
            raise
        if spool.identity.pending:
            spool.close()
        else:
            spool.remove()

    def _ship(self, spool: Spool, progress: Progress) -> None:
        self._shipper = shipper = self._make_shipper(spool, progress)
        if not self._stopping.is_set():
            shipper.run(until_empty=True)
