"""What becomes of a spool that was copied: to another machine, or back from a backup.

Two that go on with one spool would both give out its next sequences, and the server would take what
the one logs for duplicates of what the other has logged. So the copy goes on under a new spool_id.
What is in it keeps its identity: whichever of the two sends that first, the other's is a duplicate.
"""

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

from edge.spool import aside
from edge.spool.file import SpoolFile
from edge.spool.homes import FILE_NAME, is_home, new_home
from edge.spool.mark import Note
from edge.spool.salvage import PART

logger = logging.getLogger(__name__)


def part_from_original(path: Path, note: Note | None, device_id: str) -> None:
    """Moves what is in a spool file to a home of its own, if the file is a copy, and begins anew.

    Args:
        path: the file, which is sound and closed.
        note: what was noted beside the file, or beside its original.
        device_id: whose spool it is.

    Raises:
        OSError, sqlite3.Error: the folder cannot be used.
    """
    if note is None or is_home(path.parent) or not _is_another_file(path, note.inode):
        return
    with closing(SpoolFile(path, device_id)) as file:
        identity = file.identity
        if identity.spool_id != note.identity.spool_id:
            return
        file.complete()
    home = new_home(path.parent)
    if identity.pending:
        home.mkdir(parents=True, mode=0o700)
        _link(path, home / FILE_NAME)
    new = path.with_name(f"{path.name}{PART}")
    aside.delete(new)  # of a process that was killed here
    SpoolFile(new, device_id).close()
    new.rename(path)
    aside.sync(path.parent)
    logger.warning(
        "spool %s is a copy: the %d predictions in it are shipped from %s, and it goes on under a "
        "new spool_id",
        *(identity.spool_id, identity.pending, home),
    )


def _is_another_file(path: Path, inode: int) -> bool:
    return path.exists() and path.stat().st_ino != inode


def _link(path: Path, target: Path) -> None:
    """Gives a file a second name, whole or not at all; or a copy, where files have but one name."""
    try:
        os.link(path, target)
    except OSError:
        part = target.with_name(f"{target.name}{PART}")
        shutil.copyfile(path, part)
        aside.sync(part)
        part.rename(target)
    aside.sync(target.parent)
