"""Opens the spool of a folder, whatever has happened to it: a node always starts."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc

from edge.spool.caps import Limits, Lost
from edge.spool.entries import Dropped, GapReason
from edge.spool.file import SpoolFile
from edge.spool.homes import FILE_NAME
from edge.spool.identity import DamagedError, EmptyError, Identity, are_branches, joined
from edge.spool.mark import Note
from edge.spool.reader import SUSPICIOUS, SpoolReader, is_damage
from edge.spool.recovery import aside
from edge.spool.recovery.copies import part_from_original
from edge.spool.recovery.salvage import identity_in, leftovers, salvage, salvage_apart, unnamed
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_SALVAGED = "spool.new.db"


@dataclass(frozen=True, slots=True)
class Opened:
    """A spool file that is open, and what became of the one that was there."""

    file: SpoolFile
    damage: str = ""
    """What was wrong with it. Empty: nothing."""
    lost: Sequence[Lost] = ()
    """What could not be read, by sequence."""


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens the spool of one folder, which this process holds.

    Args:
        directory: the folder.
        device_id: whose spool it is.
        limits: of what is salvaged.
    """

    directory: Path
    device_id: str
    limits: Limits

    @property
    def path(self) -> Path:
        """The spool file."""
        return self.directory / FILE_NAME

    def open(self, note: Note | None, now: float) -> Opened:
        """Opens the file; makes it if there is none; salvages it if it is damaged.

        Args:
            note: what was noted beside it.
            now: Unix seconds.

        Raises:
            SightlineError: it belongs to another device (`SPOOL_OF_ANOTHER_DEVICE`), or a later
                version made it (`SPOOL_TOO_NEW`).
            OSError, sqlite3.Error: the folder cannot be used.
        """
        self._finish()
        noted = note.identity if note else None
        try:
            # A look first: to open it for changes may change what is left of a damaged one.
            found = self._look(noted)
            if found is not None:
                part_from_original(self.path, note, found)
            return Opened(SpoolFile(self.path, self.device_id))
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            return self.recover(error, noted, now)

    def recover(
        self, error: Exception, known: Identity | None, now: float, *, is_exact: bool = False
    ) -> Opened:
        """Salvages the file, which is closed.

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
        self._check(identity)
        if known is None:
            return self._salvage_apart(error, identity, now)
        new = self.directory / _SALVAGED
        done = salvage(self.path, new, identity, self.limits, now, is_exact=is_exact)
        old = self._finish()
        logger.error(
            "spool is damaged (%s): %d predictions were salvaged, %d are lost; "
            "the damaged file is kept as %s",
            *(error, done.rows, sum(one.count for one in done.lost), old),
        )
        return Opened(SpoolFile(self.path, self.device_id), str(error), done.lost)

    def _finish(self) -> Path | None:
        """Puts what was salvaged into its place, for itself or for a process that was killed."""
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
        """Salvages what may have gone further than anything here says, so that it must not go on.

        The salvaged predictions keep their identity, in a spool of their own that is shipped like
        that of a forked process; new ones get a new spool_id, for a sequence must not come twice.
        """
        home, done = salvage_apart(self.path, identity, self.limits, now)
        old = aside.set_aside(self.path, is_salvaged=True)
        aside.prune(self.directory, self.limits.max_bytes)
        logger.error(
            "spool is damaged (%s): %d predictions were salvaged to %s, %d are lost; "
            "a new spool begins, the file is kept as %s",
            *(error, done.rows, home, sum(one.count for one in done.lost), old),
        )
        return Opened(SpoolFile(self.path, self.device_id), str(error))

    def _begin_anew(self, error: Exception) -> Opened:
        """Declares lost what cannot be sent, because nothing says as whose, or as what."""
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

    def _look(self, noted: Identity | None) -> Identity | None:
        """Returns whose spool the file is; None: it was never finished.

        Raises:
            DamagedError: it is not as it was left; or SQLite says so in its own words.
        """
        log = self.path.with_name(f"{FILE_NAME}-wal")
        own = noted if noted and noted.device_id == self.device_id else None
        try:
            reader = SpoolReader(self.path)
        except EmptyError:
            # What was never finished is made again, unless something says that there was more.
            if own or (_size(log) and not _size(self.path)):
                raise
            return None
        with closing(reader):
            reader.spooled_at(last=True)  # what the spool's clock will ask for
        self._check(reader.identity)
        _compare(reader.identity, noted)
        return reader.identity

    def _check(self, identity: Identity) -> None:
        if identity.device_id == self.device_id:
            return
        raise SightlineError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "SPOOL_OF_ANOTHER_DEVICE",
            f"spool_dir: {self.directory} holds the spool of device {identity.device_id!r}; "
            f"device {self.device_id!r} needs a folder of its own",
        )


def _compare(identity: Identity, noted: Identity | None) -> None:
    """Raises DamagedError if the file ends before what was noted: SQLite does not tell."""
    if noted is None or noted.spool_id != identity.spool_id or noted.last <= identity.last:
        return
    if are_branches(identity, noted):
        return  # the note is of what was here before the file was put back
    raise DamagedError(f"its end is gone, after sequence {identity.last} of {noted.last}", identity)


def _certain(error: Exception, known: Identity | None) -> Identity | None:
    """Returns the identity in the file, if it could be read, with what else is known of it."""
    own = error.identity if isinstance(error, DamagedError) else None
    return joined(own, known) if own else known


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
