"""The SHA-256 of a whole model, in whichever format: a file, files side by side, or a folder."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vision.errors import ModelError, unreadable
from vision.external_data import onnx_sha256
from vision.model_files import open_regular_file

_MAX_FILES = 10_000  # of a folder; exports have a few dozen


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model, in hex; serves as its version if none is configured.

    That of an ONNX file covers its external data (see `external_data.sha256_of`). That of a folder
    covers names and contents of all files in it and below, except hidden ones. Any other file is
    hashed as it is. Files are read in pieces.

    Args:
        path: a file, or the folder of an export such as `best_openvino_model`.

    Raises:
        ModelError: ``MODEL_FILE_MISSING``: a file cannot be read; ``MODEL_FILE_INVALID``: the
            folder contains no files or more than 10 000, or the external data of an ONNX file is
            missing or in a forbidden place.
    """
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _of_file(path: Path) -> str:
    if ".onnx" in path.name.lower():  # as ultralytics recognises it
        return onnx_sha256(path)
    with open_regular_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_folder(folder: Path) -> str:
    whole, count = hashlib.sha256(), 0
    for count, path in enumerate(_files_below(folder), start=1):
        if count > _MAX_FILES:
            raise _invalid(folder, f"it has more than {_MAX_FILES} files")
        name = path.relative_to(folder).as_posix()
        whole.update(os.fsencode(name) + b"\0" + bytes.fromhex(_of_file(path)))
    if not count:
        raise _invalid(folder, "it has no files")
    return whole.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below, in a fixed order, through links as a runtime would."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def _invalid(folder: Path, problem: str) -> ModelError:
    return ModelError(
        "MODEL_FILE_INVALID",
        f"{folder} cannot be loaded as a model: {problem}. Give the folder of an export, such as"
        " best_openvino_model.",
    )
