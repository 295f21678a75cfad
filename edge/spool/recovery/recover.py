"""Recovery of a damaged spool: readable predictions are salvaged, the rest is declared lost."""

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc

from edge.spool.caps import Lost, SpoolLimits
from edge.spool.directories import FILE_NAME
from edge.spool.entries import Dropped, GapReason
from edge.spool.file import SpoolFile
from edge.spool.identity import DamagedError, Identity, joined
from edge.spool.opened import Opened
from edge.spool.recovery import aside
from edge.spool.recovery.salvage import (
    delete_leftovers,
    identity_in,
    salvage,
    salvage_apart,
    unnamed,
)
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_SALVAGED = "spool.new.db"


@dataclass(frozen=True, slots=True)
class Recovery:
    """The recovery of the spool in one folder, which this process holds.

    Args:
        directory: the folder.
        device_id: the device that the spool belongs to.
        limits: limits that a salvaged file must meet.
    """

    directory: Path
    device_id: str
    limits: SpoolLimits

    @property
    def path(self) -> Path:
        """The spool file."""
        return self.directory / FILE_NAME

    def recover(
        self, error: Exception, known: Identity | None, now: float, *, is_exact: bool = False
    ) -> Opened:
        """Salvage the damaged file, which must be closed.

        Args:
            error: the damage that was found.
            known: the last known identity of the spool. None: only the file may contain it.
            now: Unix seconds.
            is_exact: True: no sequence beyond `known` was committed, whatever the file contains.

        Raises:
            SightlineError, OSError, sqlite3.Error: see `Opener.open`.
        """
        known = _combined(error, known)
        identity = known or identity_in(self.path)
        if identity is None:
            return self._begin_anew(error)
        self.check(identity)
        if known is None:
            return self._salvage_apart(error, identity, now)
        new = self.directory / _SALVAGED
        salvaged = salvage(self.path, new, identity, self.limits, now, is_exact=is_exact)
        old = self.finish()
        logger.error(
            "spool is damaged (%s): %d predictions were salvaged, %d are lost; "
            "the damaged file is kept as %s",
            *(error, salvaged.rows, sum(run.count for run in salvaged.lost), old),
        )
        return Opened(SpoolFile(self.path, self.device_id), str(error), salvaged.lost)

    def finish(self) -> Path | None:
        """Replace the damaged file with the salvaged one, which a killed process may have left."""
        delete_leftovers(self.directory)
        new = self.directory / _SALVAGED
        if not new.exists():
            return None
        old = aside.set_aside(self.path, is_salvaged=True)
        new.rename(self.path)
        aside.sync(self.directory)
        aside.prune(self.directory, self.limits.max_bytes)
        return old

    def _salvage_apart(self, error: Exception, identity: Identity, now: float) -> Opened:
        """Salvage into a fork directory, since the last assigned sequence is not known.

        The salvaged predictions keep their identity and are shipped like those of a forked process.
        New predictions get a new spool_id, so that no sequence is assigned twice.
        """
        fork, salvaged = salvage_apart(self.path, identity, self.limits, now)
        old = aside.set_aside(self.path, is_salvaged=True)
        aside.prune(self.directory, self.limits.max_bytes)
        logger.error(
            "spool is damaged (%s): %d predictions were salvaged to %s, %d are lost; "
            "a new spool was created, the damaged file is kept as %s",
            *(error, salvaged.rows, fork, sum(run.count for run in salvaged.lost), old),
        )
        return Opened(SpoolFile(self.path, self.device_id), str(error))

    def _begin_anew(self, error: Exception) -> Opened:
        """Start a new spool and declare the old predictions lost, since their spool is unknown."""
        tag_and_count = unnamed(self.path)
        count = tag_and_count[1] if tag_and_count else 0
        old = aside.set_aside(self.path, is_salvaged=False)
        aside.prune(self.directory, self.limits.max_bytes)
        logger.error(
            "spool is damaged (%s) and its identity is lost: set aside as %s with %d readable "
            "predictions; a new spool was created",
            *(error, old, count),
        )
        file = SpoolFile(self.path, self.device_id)
        lost = []
        if count:
            with file.transaction():
                file.append([Dropped(count, GapReason.SPOOL_DAMAGED)], 0.0, 0.0)
            lost = [Lost(1, count, GapReason.SPOOL_DAMAGED, count)]
        return Opened(file, str(error), lost)

    def check(self, identity: Identity) -> None:
        """Check that a spool belongs to this device.

        Raises:
            SightlineError: `SPOOL_OF_ANOTHER_DEVICE`.
        """
        if identity.device_id == self.device_id:
            return
        raise SightlineError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "SPOOL_OF_ANOTHER_DEVICE",
            f"spool_dir: {self.directory} holds the spool of device {identity.device_id!r}; "
            f"give device {self.device_id!r} another folder",
        )


def _combined(error: Exception, known: Identity | None) -> Identity | None:
    """Return the identity in the file joined with the known one, as far as either exists."""
    own = error.identity if isinstance(error, DamagedError) else None
    return joined(own, known) if own else known
