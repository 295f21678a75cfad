"""ONNX external data: weight files beside the ONNX file, loaded before the session is opened.

ONNX Runtime would keep these files mapped for as long as the session exists. Overwriting a mapped
file ends the process with SIGBUS, or changes the weights of a running model.

The file names come from the model, which may be untrusted. A name that leads out of the model's
folder is refused before any file is opened: the model's outputs could disclose its content.
"""

import errno
import hashlib
import os
import stat
import unicodedata
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from vision.errors import ModelError, unreadable
from vision.file_kinds import HEAD_BYTES
from vision.model_files import check_external, missing_external, read_onnx, refused_onnx
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
        raise refused_onnx(path, content, error) from error


def load_external_data(
    path: Path, content: bytes, options: "onnxruntime.SessionOptions"
) -> dict[str, bytes]:
    """Load a model's external data and add it to the session options.

    Args:
        path: of the ONNX file.
        content: of the same.
        options: receives the loaded files.

    Returns:
        The files' contents by name, which must be kept until the session is open.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: as `external_data_names` and `open_external_file`.
        OSError: a file cannot be read.
    """
    contents: dict[str, bytes] = {}
    for name in external_data_names(path, content):
        with open_external_file(path, name) as file:
            contents[name] = file.read()
    if contents:
        buffers = list(contents.values())
        options.add_external_initializers_from_files_in_memory(
            list(contents), buffers, [len(buffer) for buffer in buffers]
        )
    return contents


def sha256_of(network: bytes, external: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of a whole model, in hex; serves as its version if none is configured.

    Without external data it is that of the ONNX file. With external data it is that of the ONNX
    file's digest followed by name and digest of each file: two trainings of one network often
    differ in these files only.

    Args:
        network: the digest of the ONNX file, 32 bytes.
        external: the digest of each file with external data, by its name.
    """
    if not external:
        return network.hex()
    whole = hashlib.sha256(network)
    for name, digest in sorted(external.items()):
        whole.update(name.encode() + b"\0" + digest)
    return whole.hexdigest()


def onnx_sha256(path: Path) -> str:
    """Return the SHA-256 of a model, an ONNX file with its external data, without loading it.

    The external data is read in pieces. For a runtime that opens the files itself, this also is
    the check that they are where they may be.

    Raises:
        ModelError: ``MODEL_FILE_MISSING``: a file cannot be read; ``MODEL_FILE_INVALID``: as
            `load_external_data`.
    """
    content = read_onnx(path)
    external = {}
    try:
        for name in external_data_names(path, content):
            with open_external_file(path, name) as file:
                external[name] = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise unreadable(path, error) from error
    return sha256_of(hashlib.sha256(content).digest(), external)


def open_external_file(path: Path, name: str) -> BufferedReader:
    """Open one of `external_data_names`.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``: it does not exist, is a link or not a regular file, or
            is a placeholder such as a git-LFS pointer.
        OSError: it cannot be read.
    """
    handle = _open(path, name)
    if handle is None:
        raise missing_external(path, name)
    file = os.fdopen(handle, "rb")
    try:
        check_external(path, name, file.read(HEAD_BYTES), os.fstat(handle).st_size)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


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
