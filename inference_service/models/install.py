"""Installation of a model into a repository: checked, atomic, never over another version."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from inference_service.models.check import ModelDescription, check_files
from inference_service.models.folders import ModelVersion, is_name, version_key
from inference_service.models.loader import RepositoryError, Runtime
from vision import ModelError
from vision.external_data import external_data_names, onnx_sha256, open_external_file
from vision.model_files import read_onnx, read_regular_file

_OWN_NAMES = ("model.onnx", "model.yaml")


class Installation(NamedTuple):
    """The result of an installation."""

    folder: Path
    """Folder of the version, new or found."""
    description: ModelDescription
    added: bool
    """False: the folder already had the same content, and nothing was written."""


def install(
    onnx: Path,
    yaml: Path,
    repository: Path,
    key: ModelVersion,
    runtime: Runtime,
    *,
    again: bool = False,
) -> Installation:
    """Copy a model to `<name>/<version>` in a repository, after a check of the copy.

    The copy is written to a hidden folder and renamed: a server that polls the repository sees the
    whole model or nothing. If the repository already has the same network, external data and
    `model.yaml` as the version, or as any version if none is given, nothing is copied.

    Args:
        onnx: the network; its external data is copied with it.
        yaml: becomes `model.yaml`; may be missing.
        repository: created if it does not exist.
        key: name and version; an empty version: the next number.
        runtime: how it is run for the check.
        again: copy it although the repository already has it.

    Raises:
        RepositoryError: an invalid name, an existing version with another content, a file that
            cannot be read or written, or an unusable model.
    """
    _check_name("--name", key.name)
    try:
        version = key.version or next_version(repository / key.name)
        _check_name("--version", version)
        target = repository / key.name / version
        description = check_files(
            onnx, yaml, runtime
        )  # the copy is checked, too; here errors have the original names
        if not again and (found := _find_same(onnx, yaml, target.parent, key.version)):
            return Installation(found, description, added=False)
        if target.exists():
            raise RepositoryError(f"{ModelVersion(key.name, version)} already exists: {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        return Installation(target, _install(onnx, yaml, target, runtime), added=True)
    except ModelError as error:
        raise RepositoryError(error.message) from error
    except OSError as error:
        raise RepositoryError(f"{error.filename or repository}: {error.strerror}") from error


def next_version(folder: Path) -> str:
    """Return the number after the highest version in a model's folder; 1 if there is none.

    Raises:
        OSError: the folder exists but cannot be read.
    """
    leading = re.match(r"\d+", max(_versions(folder), key=version_key, default=""))
    return str(int(leading[0]) + 1 if leading else 1)


def _versions(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.is_dir() and is_name(path.name)]
    except FileNotFoundError:
        return []


def _install(onnx: Path, yaml: Path, target: Path, runtime: Runtime) -> ModelDescription:
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        description = _copy(onnx, yaml, staging, runtime)
        staging.chmod(0o755)  # the server may run as another user
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync(target.parent)
    return description


def _copy(onnx: Path, yaml: Path, folder: Path, runtime: Runtime) -> ModelDescription:
    network = read_onnx(onnx)
    for name in external_data_names(onnx, network):
        if str(Path(name)) in _OWN_NAMES:
            raise RepositoryError(
                f"{onnx}: its external data {name!r} has a name that the repository uses itself:"
                " export it again with another name for the external data"
            )
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_external_file(onnx, name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        _sync(target)
    _write(folder / "model.onnx", network)
    if yaml.is_file():
        _write(folder / "model.yaml", read_regular_file(yaml))
    for path, _, _ in os.walk(folder, topdown=False):
        _sync(Path(path))
    description = check_files(folder / "model.onnx", folder / "model.yaml", runtime)
    if onnx_sha256(folder / "model.onnx") != onnx_sha256(onnx):
        raise RepositoryError(f"{onnx}: changed while it was being copied")
    return description


def _find_same(onnx: Path, yaml: Path, folder: Path, version: str) -> Path | None:
    """Return the highest version in a model's folder that has the same content, or None.

    Args:
        onnx: the network.
        yaml: its `model.yaml`; may be missing.
        folder: of the model.
        version: the only one to look at; empty: all.
    """
    names = [version] if version else sorted(_versions(folder), key=version_key, reverse=True)
    text = _content_of(yaml)
    size = onnx.stat().st_size
    sha256 = ""  # of a large model it takes seconds, and is rarely needed
    for name in names:
        there = folder / name / "model.onnx"
        try:
            if there.stat().st_size != size or _content_of(folder / name / "model.yaml") != text:
                continue
            sha256 = sha256 or onnx_sha256(onnx)
            if onnx_sha256(there) == sha256:
                return folder / name
        except (OSError, ModelError):  # a broken version is not the same
            continue
    return None


def _content_of(yaml: Path) -> bytes | None:
    return read_regular_file(yaml) if yaml.is_file() else None


def _check_name(option: str, name: str) -> None:
    if not is_name(name):
        raise RepositoryError(
            f"{option}: must be 1 to 128 letters, digits and ._+-, starting with a letter or digit"
            f" (got {name!r})"
        )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
