"""The folders of a device's spools: the main one, and one below `forks/` per further spool."""

import os
import uuid
from pathlib import Path
from urllib.parse import quote

from edge.spool import superblock as superblocks
from servicekit.settings import SettingsError

FILE_NAME = "spool.db"
_FORKS = "forks"


def is_fork_directory(directory: Path) -> bool:
    """Return True if a folder is a fork directory, that is, directly below a `forks` folder."""
    return directory.parent.name == _FORKS


def new_fork_directory(directory: Path) -> Path:
    """Return the path of a new fork directory, without creating it.

    The node that owns `directory` ships the spool in it.
    """
    forks = directory.parent if is_fork_directory(directory) else directory / _FORKS
    return forks / str(uuid.uuid4())


def holds_spool(directory: Path) -> bool:
    """Return True if a folder has held a spool, whether or not it can be read."""
    files = (FILE_NAME, superblocks.FILE_NAME)
    return any(os.path.exists(directory / name) for name in files)  # noqa: PTH110 - never raises


def fork_directories(directory: Path) -> list[Path]:
    """Return the fork directories that contain a spool, in use or not."""
    forks = directory / _FORKS
    files = [*forks.glob(f"*/{FILE_NAME}"), *forks.glob(f"*/{superblocks.FILE_NAME}")]
    return sorted({path.parent for path in files})


def default_spool_dir(device_id: str) -> Path:
    """Return `sightline/<device_id>` in `$XDG_STATE_HOME`, by default `~/.local/state`.

    Characters that are unsafe in a file name are percent-encoded.

    Raises:
        servicekit.settings.SettingsError: this user has no home folder, as in a container whose
            user is only a number.
    """
    state = os.environ.get("XDG_STATE_HOME") or _home() / ".local/state"
    name = quote(device_id, safe=" ")
    return Path(state) / "sightline" / (name if name.strip(".") else name.replace(".", "%2E"))


def _home() -> Path:
    try:
        return Path.home()
    except (RuntimeError, KeyError) as error:
        raise SettingsError(
            "spool_dir: must be given (--spool-dir or SIGHTLINE_EDGE_SPOOL_DIR), because its"
            " default is in the home folder and this user has none: HOME is not set and the system"
            " does not know the user"
        ) from error
