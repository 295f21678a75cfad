"""Handling of a spool that is found to be a copy, from another machine or from a backup.

If both copies continued the spool, they would assign the same sequences to different predictions.
So the copy continues under a new spool_id. Its present contents keep their identity: whichever copy
sends them first, the other's are duplicates.

A copy at the location of its original is not detected here. The server's answer then shows how far
the two agree (see `edge.spool.lineage`).
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


def part_from_original(path: Path, superblock: Superblock | None, identity: Identity) -> None:
    """Move the contents of a copied spool to a fork directory and start an empty spool.

    The same happens to a spool that has more pending openings than a lineage can hold.

    Args:
        path: the file, which must be sound and closed.
        superblock: the superblock of the file or of its original.
        identity: the identity in the file.

    Raises:
        OSError, sqlite3.Error: the folder cannot be used.
    """
    if is_fork_directory(path.parent):
        return
    is_copy = (
        superblock is not None
        and superblock.identity.spool_id == identity.spool_id
        and superblocks.is_elsewhere(superblock, superblocks.location_of(path))
    )
    if not is_copy and not is_full(identity.lineage, identity.acknowledged):
        return
    with closing(SpoolFile(path, identity)) as file:
        identity = file.identity
        file.complete()
    fork = new_fork_directory(path.parent)
    if identity.pending:
        fork.mkdir(parents=True, mode=0o700)
        _link(path, fork / FILE_NAME)
    new = path.with_name(f"{path.name}{PART}")
    aside.delete(new)  # left by a process that was killed at this point
    SpoolFile(new, identity.device_id).close()
    new.rename(path)
    aside.sync(path.parent)
    logger.warning(
        "spool %s %s: its %d predictions are shipped from %s, and logging continues under a new "
        "spool_id",
        *(
            identity.spool_id,
            "is a copy" if is_copy else "was opened too often since the server last answered",
            identity.pending,
            fork,
        ),
    )


def _link(path: Path, target: Path) -> None:
    """Hard-link a file or, where the file system has no links, copy it; whole or not at all."""
    try:
        os.link(path, target)
    except OSError:
        part = target.with_name(f"{target.name}{PART}")
        shutil.copyfile(path, part)
        aside.sync(part)
        part.rename(target)
    aside.sync(target.parent)
