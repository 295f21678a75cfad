"""Where the spools of one device lie: one in its folder, others in folders below."""

import os
import uuid
from pathlib import Path
from urllib.parse import quote

from edge.spool import superblock as superblocks

FILE_NAME = "spool.db"
_FORKS = "forks"


def is_fork_directory(directory: Path) -> bool:
    """Say whether a folder is one of those below that of a node."""
    return directory.parent.name == _FORKS


def new_fork_directory(directory: Path) -> Path:
    """Return a folder for another spool, which the node of this one ships; it is not made yet."""
    forks = directory.parent if is_fork_directory(directory) else directory / _FORKS
    return forks / str(uuid.uuid4())


def fork_directories(directory: Path) -> list[Path]:
    """Return the folders below one that have a spool, in use or not."""
    forks = directory / _FORKS
    found = [*forks.glob(f"*/{FILE_NAME}"), *forks.glob(f"*/{superblocks.FILE_NAME}")]
    return sorted({path.parent for path in found})


def default_spool_dir(device_id: str) -> Path:
    """Return `sightline/<device_id>` in `$XDG_STATE_HOME`, by default `~/.local/state`.

    Characters that a file name should not have are percent-encoded.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    name = quote(device_id, safe=" ")
    return Path(state) / "sightline" / (name if name.strip(".") else name.replace(".", "%2E"))
