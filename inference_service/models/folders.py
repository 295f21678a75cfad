"""Scan of a model repository, `<name>/<version>/{model.onnx, model.yaml}`, and its state.

A state consists of names, sizes, times and inodes, so that polling reads no file. Files that were
copied or moved into place, and links that point elsewhere, change the state.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from inference_service.models.loader import RepositoryError
from vision.model_files import models_in

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class ModelVersion(NamedTuple):
    """Name and version of a model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"model {self.name} version {self.version}"


State = tuple[tuple[object, ...], ...]
"""State of a version's folder; equal if nothing in it has changed."""


def is_name(text: str) -> bool:
    """Return True for a valid name of a model or version; other folders are ignored."""
    return _NAME.fullmatch(text) is not None


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return the sort key of a version: numbers in it are compared as numbers."""
    parts = re.findall(r"\d+|\D+", version)
    return tuple((1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts)


def scan(folder: Path, before: Mapping[ModelVersion, State]) -> dict[ModelVersion, State]:
    """Return every version with its state, ordered by name and version.

    Args:
        folder: the repository.
        before: the previous result, which is used for models whose folder cannot be read now.

    Raises:
        RepositoryError: it is not a folder, cannot be read, or contains no version of any model.
    """
    states: dict[ModelVersion, State] = {}
    try:
        names = _folders(folder)
    except FileNotFoundError as error:
        raise RepositoryError(f"model_repository: {folder} is not a folder") from error
    except OSError as error:
        raise RepositoryError(
            f"model_repository: {folder} cannot be read: {error.strerror}"
        ) from error
    for name in names:
        try:
            versions = _folders(folder / name)
        except FileNotFoundError:  # it was removed in between
            continue
        except OSError:
            states |= {key: state for key, state in before.items() if key.name == name}
            continue
        for version in sorted(versions, key=version_key):
            state = read_state(folder / name / version)
            if state is not None:
                states[ModelVersion(name, version)] = state
    if not states:
        raise RepositoryError(
            f"model_repository: {folder} contains no model (expected <name>/<version>/model.onnx)"
            f"{misplaced(folder, *(folder / name for name in names))}"
        )
    return states


def empty_models(folder: Path) -> list[str]:
    """Return the names of models in a repository that have no readable version.

    Raises:
        OSError: the repository cannot be read.
    """
    return [name for name in _folders(folder) if not _readable_folders(folder / name)]


def misplaced(*folders: Path) -> str:
    """Return the end of a message that names models in folders which should have none."""
    found = [name for folder in folders for name in models_in(folder)]
    if not found:
        return ""
    return f"; it has {', '.join(found)}: `sightline models add` puts a model into its place"


def read_state(folder: Path) -> State | None:
    """Return the state of a version's folder; None if it does not exist.

    It covers the folders below, which may contain external data. Links to folders are not followed:
    external data behind them is refused.
    """
    try:
        states = list(_states(folder, ""))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (
            ("cannot be read", error.errno),
        )  # loading it will fail with this error, which is logged
    return tuple(sorted(states, key=str))


def _states(folder: Path, below: str) -> Iterator[tuple[object, ...]]:
    """Yield the state of each file in a folder and below; `below` is the start of their names."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        name = below + entry.name
        yield _file_state(entry, name)
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _states(folder / entry.name, f"{name}/")
        except OSError as error:
            yield name, "cannot be read", error.errno


def _file_state(entry: os.DirEntry[str], name: str) -> tuple[object, ...]:
    try:
        status = entry.stat()
    except OSError as error:
        return name, error.errno
    if not stat.S_ISREG(status.st_mode):
        return name, status.st_mode
    # The change time of the inode detects copies by tools that preserve the modification time.
    return name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _readable_folders(folder: Path) -> list[str]:
    try:
        return _folders(folder)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True  # unknown now: better than treating it as removed


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if is_name(e.name) and _is_folder(e))
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(folder)) from error
