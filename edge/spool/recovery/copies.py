"""Handling of a spool that is found to be a copy, from another machine or from a backup.

Two that go on with one spool would both give out its next sequences for different predictions. So
the copy goes on under a new spool_id. What is in it keeps its identity: whichever of the two sends
that first, the other's is a duplicate.

A copy that lies where its original was is not seen here. The server's answer then tells how far the
two agree (see `edge.spool.lineage`).
"""

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

from edge.spool import superblock as superblocks
from edge.spool.directories import FILE_NAME, is_fork_directory, new_fork_directory
from edge.spool.file import SpoolFile
from edge.spool.identity import Identity
from edge.spool.lineage import is_full
from edge.spool.recovery import aside
from edge.spool.recovery.salvage import PART
from edge.spool.superblock import Superblock

logger = logging.getLogger(__name__)


def part_from_original(path: Path, superblock: Superblock | None, found: Identity) -> None:
    """Move what is in a spool file to a home of its own, if the file is a copy, and begins anew.

    So does a spool in which more openings wait for the server than a lineage can name.

    Args:
        path: the file, which is sound and closed.
        superblock: what was noted beside the file, or beside its original.
        found: what the file says of itself.

    Raises:
        OSError, sqlite3.Error: the folder cannot be used.
    """
    if is_fork_directory(path.parent):
        return
    is_copy = (
        superblock is not None
        and superblock.identity.spool_id == found.spool_id
        and superblocks.is_elsewhere(superblock, superblocks.location_of(path))
    )
    if not is_copy and not is_full(found.lineage, found.acknowledged):
        return
    with closing(SpoolFile(path, found)) as file:
        identity = file.identity
        file.complete()
    fork = new_fork_directory(path.parent)
    if identity.pending:
        fork.mkdir(parents=True, mode=0o700)
        _link(path, fork / FILE_NAME)
    new = path.with_name(f"{path.name}{PART}")
    aside.delete(new)  # of a process that was killed here
    SpoolFile(new, identity.device_id).close()
    new.rename(path)
    aside.sync(path.parent)
    logger.warning(
        "spool %s %s: the %d predictions in it are shipped from %s, and it goes on under a new "
        "spool_id",
        *(
            identity.spool_id,
            "is a copy" if is_copy else "was opened too often since the server was last reached",
            identity.pending,
            fork,
        ),
    )


def _link(path: Path, target: Path) -> None:
    """Give a file a second name, whole or not at all; or a copy, where files have but one name."""
    try:
        os.link(path, target)
    except OSError:
        part = target.with_name(f"{target.name}{PART}")
        shutil.copyfile(path, part)
        aside.sync(part)
        part.rename(target)
    aside.sync(target.parent)
