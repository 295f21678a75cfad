"""Reading of model files, and the errors for files that are none or have another format."""

import errno
import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from itertools import islice
from pathlib import Path

from vision.errors import ModelError, unreadable
from vision.file_kinds import (
    HEAD_BYTES,
    MODEL_ENDINGS,
    PYTORCH,
    FileKind,
    kind_of,
    kind_of_protobuf,
)

_MAX_ONNX = 2**31 - 1  # bytes of a protobuf message
_MAX_LISTED = 1000  # files of a folder that are looked at
_MAX_SHOWN = 3
_EXPORT_AGAIN = "Export it again, and keep its external data, if any, beside it."
_FOLDER = "a folder"
_GIVE_ONNX = "Give an .onnx file."
# What the folders of exports contain, by the ending of a file's name.
_FOLDERS = {
    ".xml": "an OpenVINO model",
    ".ncnn.param": "an NCNN model",
    "saved_model.pb": "a TensorFlow SavedModel",
    "Manifest.json": "a Core ML package",
    ".pdiparams": "a PaddlePaddle model",
    ".rknn": "an RKNN model",
    ".pte": "an ExecuTorch program",
}


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file that the operator has named; it may be a link.

    Raises:
        OSError: it cannot be read, or is a device, a pipe or a socket: reading might never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
    os.close(handle)
    if is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular_file(path: Path) -> bytes:
    """Return the content of a file; see `open_regular_file`.

    Raises:
        OSError: as `open_regular_file`.
    """
    with open_regular_file(path) as file:
        return file.read()


def read_onnx(path: Path) -> bytes:
    """Return the content of a file that may be an ONNX file, which only loading it can tell.

    Files of other formats are refused by their first bytes: some are too large for the memory.

    Raises:
        ModelError: ``MODEL_FILE_MISSING``: it cannot be read; ``MODEL_FILE_INVALID``: it has
            another format, or is larger than an ONNX file can be.
    """
    try:
        with open_regular_file(path) as file:
            kind, size = _examine(file)
            if kind is not None:
                raise _is_other(path, kind)
            if size > _MAX_ONNX:
                problem = f"it has {size} bytes, and an ONNX file at most {_MAX_ONNX}"
                raise _cannot(path, f"{problem}. Export it with external data.")
            file.seek(0)
            return file.read()
    except FileNotFoundError as error:
        raise _missing(path, error) from error
    except IsADirectoryError as error:
        raise _cannot(path, f"it is {_folder_kind(path)}. {_in_folder(path)}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def refused_onnx(path: Path, content: bytes, cause: object) -> ModelError:
    """Return the error for a content of `read_onnx` that cannot be loaded.

    Args:
        path: of the file.
        content: of the same.
        cause: what the parser or the runtime says, which is shown if the file seems complete.
    """
    kind = kind_of_protobuf(content)
    if kind is not None:
        return _is_other(path, kind)
    return _cannot(path, f"{str(cause).rstrip('.')}. {_EXPORT_AGAIN}")


def check_format(path: Path) -> None:
    """Check that a file has the format that its name announces, by which ultralytics chooses.

    Folders, and formats without a signature, are not checked.

    Raises:
        ModelError: ``MODEL_FILE_MISSING``: it cannot be read; ``MODEL_FILE_INVALID``: it is no
            model, or one of another format.
    """
    try:
        with open_regular_file(path) as file:
            kind, _ = _examine(file)
    except IsADirectoryError:
        return
    except OSError as error:
        raise unreadable(path, error) from error
    name = path.name.lower()
    if kind is None and name.endswith(PYTORCH.endings):
        raise _cannot(path, f"it is not {PYTORCH.name}. An ONNX file's name must end in .onnx.")
    if kind is None or name.endswith(kind.endings):
        return
    if ".onnx" in name:
        raise _is_other(path, kind)
    if not kind.endings:
        raise _is_other(path, kind, "a model that ultralytics runs")
    raise _cannot(path, f"it is {kind.name}. Rename it: its name must end in {kind.endings[0]}.")


def damaged_onnx(path: Path, cause: object) -> ModelError | None:
    """Return the error for an ONNX file that another runtime could not load.

    None: it has all of its parts, or does not have the name of an ONNX file.

    Args:
        path: of the file.
        cause: what the runtime says.

    Raises:
        ModelError: as `read_onnx`.
    """
    if path.is_dir() or ".onnx" not in path.name.lower():
        return None
    content = read_onnx(path)
    return refused_onnx(path, content, cause) if kind_of_protobuf(content) else None


def check_external(path: Path, name: str, head: bytes, size: int) -> None:
    """Check that a file with external data is not a placeholder, such as a git-LFS pointer.

    Args:
        path: of the ONNX file.
        name: of the file with external data.
        head: its first `HEAD_BYTES` bytes.
        size: its size in bytes.

    Raises:
        ModelError: ``MODEL_FILE_INVALID``.
    """
    kind = kind_of(head, b"", size)
    if kind is not None and kind.placeholder:
        problem = f"its external data {name!r} is {kind.name}"
        raise _cannot(path, f"{problem}. {_sentence(kind.advice)}")


def missing_external(path: Path, name: str) -> ModelError:
    """Return the error for a file with external data that does not exist."""
    problem = f"its external data {name!r} is missing"
    return _cannot(path, f"{problem}. Copy it into the model's folder, with the same name.")


def models_in(folder: Path) -> list[str]:
    """Return up to three names of files in a folder that look like models, with their kinds.

    For messages: a fourth element is "..." if there are more.
    """
    found = []
    for path in _files_in(folder):
        suffix = path.suffix.lower()
        if suffix == ".onnx":
            found.append(path.name)
        if suffix not in MODEL_ENDINGS:
            continue
        try:
            with open_regular_file(path) as file:
                kind, _ = _examine(file)
        except OSError:
            continue
        if kind is not None and kind.endings:
            found.append(f"{path.name} ({kind.name})")
    more = ["..."] if len(found) > _MAX_SHOWN else []
    return [*found[:_MAX_SHOWN], *more]


def _examine(file: BufferedReader) -> tuple[FileKind | None, int]:
    """Return the kind of an open file, None for one that may be an ONNX file, and its size."""
    head = file.read(HEAD_BYTES)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - HEAD_BYTES, 0))
    return kind_of(head, file.read(HEAD_BYTES), size), size


def _is_other(path: Path, kind: FileKind, wanted: str = "an ONNX file") -> ModelError:
    advice = _sentence(kind.advice)
    if kind.endings:
        runs = "On a device, `--detector ultralytics` runs it"
        advice += f" {runs} if its name ends in {kind.endings[0]}."
    contrast = "" if kind.name.startswith(wanted) else f", not {wanted}"
    return _cannot(path, f"it is {kind.name}{contrast}. {advice}")


def _missing(path: Path, error: OSError) -> ModelError:
    """Return the error for a file that does not exist, with the models in its folder."""
    problem, found = unreadable(path, error), models_in(path.parent)
    if found:
        there = f"; its folder has {', '.join(found)}"
    elif (kind := _folder_kind(path.parent)) != _FOLDER:
        there = f"; its folder is {kind}"
    else:
        return problem
    return ModelError(problem.reason, problem.message + there)


def _folder_kind(folder: Path) -> str:
    for path in _files_in(folder):
        for ending, kind in _FOLDERS.items():
            if path.name.endswith(ending):
                return f"{_FOLDER} with {kind}"
    return _FOLDER


def _in_folder(folder: Path) -> str:
    found = models_in(folder)
    return f"{_GIVE_ONNX[:-1]}: the folder has {', '.join(found)}." if found else _GIVE_ONNX


def _files_in(folder: Path) -> Iterable[Path]:
    try:
        return sorted(islice(folder.iterdir(), _MAX_LISTED))
    except OSError:
        return []


def _cannot(path: Path, what: str) -> ModelError:
    return ModelError("MODEL_FILE_INVALID", f"{path} cannot be loaded as a model: {what}")


def _sentence(advice: str) -> str:
    return f"{advice[0].upper()}{advice[1:]}."
