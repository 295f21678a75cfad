"""Weights that an exporter put beside the ONNX file, read into memory before the session is made.

ONNX Runtime would map these files for as long as the session lives: who then copies a new version
over one of them ends the process with SIGBUS, or changes the weights of a model that runs.

Their names come from the model, which may be somebody else's. One that leads out of the model's
folder is refused before anything is opened: its content could be read out of the model's answers.
"""

import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from vision.errors import ModelError
from vision.onnx_names import find_names

if TYPE_CHECKING:
    import onnxruntime

_MOST_NAME_BYTES = 1024
# Windows' separators, wildcards, and ONNX Runtime's own mark of an address in memory,
# which is taken for weights: */_ORT_MEM_ADDR_/*
_NOT_IN_NAMES = frozenset('\\*?"<>|')
_NO_TEXT = frozenset({"Cc", "Cf", "Zl", "Zp"})
_BESIDE = "its weights must be in files in the model's own folder"


def external_data_names(path: Path, content: bytes) -> list[str]:
    """Return the names of the files that a model's weights are in, in its own folder or below.

    Args:
        path: of the ONNX file.
        content: of the same.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: a name is absolute, has `..`, or cannot be a file's; or
            it is no ONNX file.
    """
    try:
        return [_checked(path, name) for name in find_names(content)]
    except ValueError as error:
        raise _invalid(path, str(error)) from error


def load_external_data(
    path: Path, content: bytes, options: "onnxruntime.SessionOptions"
) -> list[bytes]:
    """Make ONNX Runtime take the weights beside a model from memory.

    Files that are not there are left to ONNX Runtime, which says so.

    Args:
        path: of the ONNX file.
        content: of the same.
        options: is changed.

    Returns:
        What must be kept until the session is made.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: as `external_data_names`, or a file is reached by a link or is
            no plain file.
        OSError: a file cannot be read.
    """
    held: dict[str, bytes] = {}
    for name in external_data_names(path, content):
        found = read_external_file(path, name)
        if found is not None:
            held[name] = found
    if held:
        options.add_external_initializers_from_files_in_memory(
            list(held), list(held.values()), [len(each) for each in held.values()]
        )
    return list(held.values())


def check_external_data(path: Path) -> None:
    """Check the files that a model names, without reading them, for a runtime that reads them.

    Raises:
        ModelError: as `load_external_data`; ``MODEL_FILE_MISSING``: it cannot be read.
    """
    try:
        for name in external_data_names(path, read_regular_file(path)):
            handle = _open(path, name)
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise ModelError("MODEL_FILE_MISSING", f"cannot read {path}: {error}") from error


def read_external_file(path: Path, name: str) -> bytes | None:
    """Return the content of one of `external_data_names`; None: it is not there.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: it is reached by a link, or is no plain file.
        OSError: it cannot be read.
    """
    handle = _open(path, name)
    if handle is None:
        return None
    with os.fdopen(handle, "rb") as file:
        return file.read()


def read_regular_file(path: Path) -> bytes:
    """Return the content of a file that the operator has named, which may well be a link.

    Raises:
        OSError: it cannot be read, or is a device, a pipe or a socket, which might never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        return file.read()


def _open(path: Path, name: str) -> int | None:
    """Return a handle of a file beside a model; None: it is not there.

    Each part of the way is opened by itself and never through a link, so that what was checked is
    what is read.
    """
    *folders, last = (part for part in name.split("/") if part != ".")
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    way = [(part, os.O_DIRECTORY) for part in folders] + [(last, os.O_NONBLOCK)]
    try:
        for part, flags in way:
            below = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, dir_fd=handle)
            os.close(handle)
            handle = below
    except FileNotFoundError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):  # a link, or a socket
            raise _invalid(path, f"{name!r} is a link or no plain file: {_BESIDE}") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _invalid(path, f"{name!r} is no plain file: {_BESIDE}")
    return handle


def _checked(path: Path, name: bytes) -> str:
    """Return a name.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: it leaves the folder, or no file has such a name.
    """
    text = name.decode(errors="replace")
    parts = text.split("/")
    good = (
        text.encode() == name
        and len(name) <= _MOST_NAME_BYTES
        and all(parts)  # neither empty nor absolute, and not a folder
        and ".." not in parts
        and parts[-1] != "."
        and text[1:2] != ":"  # a drive of Windows
        and not _NOT_IN_NAMES.intersection(text)
        and not any(unicodedata.category(character) in _NO_TEXT for character in text)
    )
    if not good:
        raise _invalid(path, f"it names the file {text[:_MOST_NAME_BYTES]!r}: {_BESIDE}")
    return text


def _invalid(path: Path, what: str) -> ModelError:
    return ModelError("MODEL_FILE_INVALID", f"{path} is no model that can be loaded: {what}")
