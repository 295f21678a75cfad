"""Opens the spool of a folder, whatever has happened to it: a node always starts."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge.spool.caps import SpoolLimits
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
    """Opens the spool of one folder, which this process holds.

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

    @property
    def recovery(self) -> Recovery:
        """Recovery of the same spool."""
        return Recovery(self.directory, self.device_id, self.limits)

    def open(self, superblock: Superblock | None, now: float) -> Opened:
        """Open the file; make it if there is none; salvages it if it is damaged.

        Args:
            superblock: what was noted beside it.
            now: Unix seconds.

        Raises:
            SightlineError: it belongs to another device (`SPOOL_OF_ANOTHER_DEVICE`), or a later
                version made it (`SPOOL_TOO_NEW`).
            OSError, sqlite3.Error: the folder cannot be used.
        """
        self.recovery.finish()
        recorded = superblock.identity if superblock else None
        try:
            # A look first: to open it for changes may change what is left of a damaged one.
            found = self._look(recorded)
            if found is not None:
                part_from_original(self.path, superblock, found)
            return Opened(SpoolFile(self.path, self.device_id))
        except SUSPICIOUS as error:
            if not is_damage(error):
                raise
            return self.recovery.recover(error, recorded, now)

    def _look(self, recorded: Identity | None) -> Identity | None:
        """Return whose spool the file is; None: it was never finished.

        Raises:
            DamagedError: it is not as it was left; or SQLite says so in its own words.
        """
        log = self.path.with_name(f"{FILE_NAME}-wal")
        own = recorded if recorded and recorded.device_id == self.device_id else None
        try:
            reader = SpoolReader(self.path)
        except EmptyError:
            # What was never finished is made again, unless something says that there was more.
            if own or (_size(log) and not _size(self.path)):
                raise
            return None
        with closing(reader):
            reader.spooled_at(last=True)  # what the spool's clock will ask for
        self.recovery.check(reader.identity)
        _compare(reader.identity, recorded)
        return reader.identity


def _compare(identity: Identity, recorded: Identity | None) -> None:
    """Raise DamagedError if the file ends before what was noted: SQLite does not tell."""
    if recorded is None or recorded.spool_id != identity.spool_id or recorded.last <= identity.last:
        return
    if are_branches(identity, recorded):
        return  # the superblock is of what was here before the file was put back
    raise DamagedError(
        f"its end is gone, after sequence {identity.last} of {recorded.last}", identity
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
