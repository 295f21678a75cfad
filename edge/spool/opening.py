"""Opening of the spool in a folder, with recovery from damage, so that a node always starts."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge.spool.directories import FILE_NAME
from edge.spool.file import SpoolFile
from edge.spool.identity import DamagedError, EmptyError, Identity, are_branches
from edge.spool.opened import Opened
from edge.spool.reader import SUSPICIOUS, SpoolReader, is_damage
from edge.spool.recovery.copies import part_from_original
from edge.spool.recovery.recover import Recovery
from edge.spool.superblock import Superblock


@dataclass(frozen=True, slots=True)
class Opener:
    """An opener for the spool of one folder, which this process holds."""

    recovery: Recovery
    """The recovery for the same folder."""

    @property
    def path(self) -> Path:
        """The spool file."""
        return self.recovery.path

    def open(self, superblock: Superblock | None, now: float) -> Opened:
        """Open the file. Create it if it is missing, salvage it if it is damaged.

        Args:
            superblock: the superblock beside the file.
            now: Unix seconds.

        Raises:
            SightlineError: the spool belongs to another device (`SPOOL_OF_ANOTHER_DEVICE`), or a
                later version wrote it (`SPOOL_TOO_NEW`).
            OSError, sqlite3.Error: the folder cannot be used.
        """
        self.recovery.finish()
        recorded = superblock.identity if superblock else None
        try:
            # Check it read-only first: opening a damaged file for writing may destroy what is left.
            identity = self._check(recorded)
            if identity is not None:
                part_from_original(self.path, superblock, identity)
            return Opened(SpoolFile(self.path, self.recovery.device_id))
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            return self.recovery.recover(error, recorded, now)

    def _check(self, recorded: Identity | None) -> Identity | None:
        """Return the identity in the file, or None if its creation was never finished.

        Raises:
            DamagedError: the file is not as it was left. SQLite may raise errors of its own.
        """
        log = self.path.with_name(f"{FILE_NAME}-wal")
        own = recorded if recorded and recorded.device_id == self.recovery.device_id else None
        try:
            reader = SpoolReader(self.path)
        except EmptyError:
            # An unfinished file is created again, unless there are signs that it held more.
            if own or (_size(log) and not _size(self.path)):
                raise
            return None
        with closing(reader):
            reader.spooled_at(last=True)  # the spool's clock will need it
        self.recovery.check(reader.identity)
        _compare(reader.identity, recorded)
        return reader.identity


def _compare(identity: Identity, recorded: Identity | None) -> None:
    """Raise DamagedError if the file ends before the superblock; SQLite does not notice that."""
    if recorded is None or recorded.spool_id != identity.spool_id or recorded.last <= identity.last:
        return
    if are_branches(identity, recorded):
        return  # the superblock describes the file that was here before a backup was restored
    raise DamagedError(
        f"it ends at sequence {identity.last}, the superblock records {recorded.last}", identity
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
