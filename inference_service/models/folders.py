"""What lies in a model repository, `<name>/<version>/{model.onnx, model.yaml}`, and in what state.

A state is told from names, sizes, times and inodes alone, so that a look costs no reading. What was
copied into place, moved there, or is reached by a link that points elsewhere now, all look new.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from inference_service.models.loader import RepositoryError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class ModelVersion(NamedTuple):
    """A version of a model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"model {self.name} version {self.version}"


State = tuple[tuple[object, ...], ...]
"""Of a version's folder; equal if nothing in it has changed."""


def is_name(text: str) -> bool:
    """Whether a model or a version may be called so; other folders are passed over."""
    return _NAME.fullmatch(text) is not None


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return what versions are sorted by: numbers in them count as numbers."""
    parts = re.findall(r"\d+|\D+", version)
    return tuple((1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts)


def scan(folder: Path, before: Mapping[ModelVersion, State]) -> dict[ModelVersion, State]:
    """Return every version and its state, by name and version, lowest first.

    Args:
        folder: the repository.
        before: the last result; holds for a model whose own folder cannot be read just now.

    Raises:
        RepositoryError: it is no folder, cannot be read, or holds no version of any model.
    """
    found: dict[ModelVersion, State] = {}
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
        except FileNotFoundError:  # it went since the line above
            continue
        except OSError:
            found |= {key: state for key, state in before.items() if key.name == name}
            continue
        for version in sorted(versions, key=version_key):
            state = read_state(folder / name / version)
            if state is not None:
                found[ModelVersion(name, version)] = state
    if not found:
        raise RepositoryError(
            f"model_repository: {folder} holds no model (expected <name>/<version>/model.onnx)"
        )
    return found


def empty_models(folder: Path) -> list[str]:
    """Return the names of models in a repository that have no version, or none that can be read.

    Raises:
        OSError: the repository cannot be read.
    """
    return [name for name in _folders(folder) if not _readable_folders(folder / name)]


def read_state(folder: Path) -> State | None:
    """Return the state of a version's folder; None: there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            found = [_of_file(entry) for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (("cannot be read", error.errno),)  # loading it will say the same, and be logged
    return tuple(sorted(found, key=lambda one: str(one[0])))


def _of_file(entry: os.DirEntry[str]) -> tuple[object, ...]:
    try:
        found = entry.stat()
    except OSError as error:
        return entry.name, error.errno
    if not stat.S_ISREG(found.st_mode):
        return entry.name, found.st_mode
    # The time of the last change of the inode is there for tools that keep the other one as it was.
    return entry.name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _readable_folders(folder: Path) -> list[str]:
    try:
        return _folders(folder)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True  # what it is cannot be told now: better than to take it for gone


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if is_name(e.name) and _is_folder(e))
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(folder)) from error
