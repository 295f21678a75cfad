"""ONNX external data: weight files beside the ONNX file, loaded before the session is opened.

ONNX Runtime would keep these files mapped for as long as the session exists. Overwriting a mapped
file ends the process with SIGBUS, or changes the weights of a running model.

The file names come from the model, which may be untrusted. A name that leads out of the model's
folder is refused before any file is opened: the model's outputs could disclose its content.
"""

import errno
import os
import stat
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from vision.errors import ModelError, unreadable
from vision.onnx_names import find_names

if TYPE_CHECKING:
    import onnxruntime

_MAX_NAME_BYTES = 1024
# Windows separators, wildcards, and ONNX Runtime's marker for a memory address, which it would
# dereference: */_ORT_MEM_ADDR_/*
_FORBIDDEN_CHARACTERS = frozenset('\\*?"<>|')
_CONTROL_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp"})
_ALLOWED_PLACE = "weights must be in regular files in the model's own folder"


def external_data_names(path: Path, content: bytes) -> list[str]:
    """Return the names of a model's weight files, relative to its folder.

    Args:
        path: of the ONNX file.
        content: of the same.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: a name is absolute, contains `..`, or is not a valid
            file name; or the content is not an ONNX file.
    """
    try:
        return [_checked(path, name) for name in find_names(content)]
    except ValueError as error:
        raise _invalid(path, str(error)) from error


def load_external_data(
    path: Path, content: bytes, options: "onnxruntime.SessionOptions"
) -> list[bytes]:
    """Load a model's external data and add it to the session options.

    Missing files are skipped; ONNX Runtime reports them when the session is opened.

    Args:
        path: of the ONNX file.
        content: of the same.
        options: receives the loaded files.

    Returns:
        The buffers, which must be kept until the session is open.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: as `external_data_names`, or a file is a link or not a
            regular file.
        OSError: a file cannot be read.
    """
    contents: dict[str, bytes] = {}
    for name in external_data_names(path, content):
        content_of_file = read_external_file(path, name)
        if content_of_file is not None:
            contents[name] = content_of_file
    buffers = list(contents.values())
    if buffers:
        options.add_external_initializers_from_files_in_memory(
            list(contents), buffers, [len(buffer) for buffer in buffers]
        )
    return buffers


def check_external_data(path: Path) -> None:
    """Check a model's external data files without reading them, for a runtime that loads them.

    Raises:
        ModelError: as `load_external_data`; ``MODEL_FILE_MISSING``: a file cannot be read.
    """
    try:
        for name in external_data_names(path, read_regular_file(path)):
            handle = _open(path, name)
            if handle is not None:
                os.close(handle)
    except OSError as error:
        raise unreadable(path, error) from error


def read_external_file(path: Path, name: str) -> bytes | None:
    """Return the content of one of `external_data_names`; None if the file does not exist.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: it is a link, or not a regular file.
        OSError: it cannot be read.
    """
    handle = _open(path, name)
    if handle is None:
        return None
    with os.fdopen(handle, "rb") as file:
        return file.read()


def read_regular_file(path: Path) -> bytes:
    """Return the content of a file that the operator has named; it may be a link.

    Raises:
        OSError: it cannot be read, or is a device, a pipe or a socket: reading might never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def _open(path: Path, name: str) -> int | None:
    """Return a descriptor of an external data file; None if it does not exist.

    Each component of the path is opened on its own and never through a link, so that the file that
    was checked is the one that is read.
    """
    *folders, last = (part for part in name.split("/") if part != ".")
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    components = [(part, os.O_DIRECTORY) for part in folders] + [(last, os.O_NONBLOCK)]
    try:
        for part, flags in components:
            child = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, dir_fd=handle)
            os.close(handle)
            handle = child
    except FileNotFoundError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):  # a link, or a socket
            raise _invalid(
                path, f"{name!r} is a link or not a regular file: {_ALLOWED_PLACE}"
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _invalid(path, f"{name!r} is not a regular file: {_ALLOWED_PLACE}")
    return handle


def _checked(path: Path, name: bytes) -> str:
    """Return the decoded name of an external data file.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: it leaves the folder, or is not a valid file name.
    """
    text = name.decode(errors="replace")
    parts = text.split("/")
    good = (
        text.encode() == name
        and len(name) <= _MAX_NAME_BYTES
        and all(parts)  # not empty, not absolute, not a folder
        and ".." not in parts
        and parts[-1] != "."
        and text[1:2] != ":"  # a Windows drive
        and not _FORBIDDEN_CHARACTERS.intersection(text)
        and not any(unicodedata.category(character) in _CONTROL_CATEGORIES for character in text)
    )
    if not good:
        raise _invalid(path, f"it refers to the file {text[:_MAX_NAME_BYTES]!r}: {_ALLOWED_PLACE}")
    return text


def _invalid(path: Path, what: str) -> ModelError:
    return ModelError("MODEL_FILE_INVALID", f"{path} cannot be loaded as a model: {what}")
