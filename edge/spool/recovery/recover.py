"""Recovery of a spool that is damaged: what is readable is salvaged, the rest is declared lost."""

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
from edge.spool.recovery.salvage import identity_in, leftovers, salvage, salvage_apart, unnamed
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_SALVAGED = "spool.new.db"


@dataclass(frozen=True, slots=True)
class Recovery:
    """Recovery of the spool of one folder, which this process holds.

    Args:
        directory: the folder.
        device_id: whose spool it is.
        limits: of what is salvaged.
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
        """Salvage the file, which is closed.

        Args:
            error: what is wrong with it.
            known: how far the spool is known to have come. None: only the file can tell.
            now: Unix seconds.
            is_exact: nothing went further than `known`, whatever the file says.

        Raises:
            SightlineError, OSError, sqlite3.Error: as above.
        """
        known = _certain(error, known)
        identity = known or identity_in(self.path)
        if identity is None:
            return self._begin_anew(error)
        self.check(identity)
        if known is None:
            return self._salvage_apart(error, identity, now)
        new = self.directory / _SALVAGED
        done = salvage(self.path, new, identity, self.limits, now, is_exact=is_exact)
        old = self.finish()
        logger.error(
            "spool is damaged (%s): %d predictions were salvaged, %d are lost; "
            "the damaged file is kept as %s",
            *(error, done.rows, sum(one.count for one in done.lost), old),
        )
        return Opened(SpoolFile(self.path, self.device_id), str(error), done.lost)

    def finish(self) -> Path | None:
        """Put what was salvaged into its place, for itself or for a process that was killed."""
        leftovers(self.directory)
        new = self.directory / _SALVAGED
        if not new.exists():
            return None
        old = aside.set_aside(self.path, is_salvaged=True)
        new.rename(self.path)
        aside.sync(self.directory)
        aside.prune(self.directory, self.limits.max_bytes)
        return old

    def _salvage_apart(self, error: Exception, identity: Identity, now: float) -> Opened:
        """Salvage what may have gone further than anything here says, so that it must not go on.

        The salvaged predictions keep their identity, in a spool of their own that is shipped like
        that of a forked process; new ones get a new spool_id, for a sequence must not come twice.
        """
        fork, done = salvage_apart(self.path, identity, self.limits, now)
        old = aside.set_aside(self.path, is_salvaged=True)
        aside.prune(self.directory, self.limits.max_bytes)
        logger.error(
            "spool is damaged (%s): %d predictions were salvaged to %s, %d are lost; "
            "a new spool begins, the file is kept as %s",
            *(error, done.rows, fork, sum(one.count for one in done.lost), old),
        )
        return Opened(SpoolFile(self.path, self.device_id), str(error))

    def _begin_anew(self, error: Exception) -> Opened:
        """Declare lost what cannot be sent, because nothing says as whose, or as what."""
        tag_and_count = unnamed(self.path)
        count = tag_and_count[1] if tag_and_count else 0
        old = aside.set_aside(self.path, is_salvaged=False)
        aside.prune(self.directory, self.limits.max_bytes)
        logger.error(
            "spool is damaged (%s) and nothing says which one it was: set aside as %s with %d "
            "predictions that can be read; a new spool begins",
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
            f"device {self.device_id!r} needs a folder of its own",
        )


def _certain(error: Exception, known: Identity | None) -> Identity | None:
    """Return the identity in the file, if it could be read, with what else is known of it."""
    own = error.identity if isinstance(error, DamagedError) else None
    return joined(own, known) if own else known
