"""Puts a model into a repository: checked first, whole or not at all, never over another."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from inference_service.models.check import ModelDescription, check_files
from inference_service.models.folders import ModelVersion, is_name, version_key
from inference_service.models.loader import RepositoryError, Runtime
from vision import ModelError
from vision.external_data import external_data_names, read_external_file, read_regular_file


def install(
    onnx: Path, yaml: Path, repository: Path, key: ModelVersion, runtime: Runtime
) -> tuple[Path, ModelDescription]:
    """Copy a model to `<name>/<version>` in a repository, once the copy has been checked.

    The copy is made beside its place, where no server looks, and renamed: a server that follows the
    repository sees all of it or nothing.

    Args:
        onnx: the network; the files that its weights are in go with it, if they lie beside it.
        yaml: becomes `model.yaml`; may be missing.
        repository: is made if it is not there.
        key: name and version; an empty version: the next number.
        runtime: how it is run for the check.

    Returns:
        Its folder, and what it is.

    Raises:
        RepositoryError: a bad name, a version that is there, a file that cannot be read or written,
            or a model that cannot be used.
    """
    _check_name("--name", key.name)
    try:
        version = key.version or next_version(repository / key.name)
        _check_name("--version", version)
        target = repository / key.name / version
        if target.exists():
            raise RepositoryError(f"{ModelVersion(key.name, version)} is there already: {target}")
        check_files(onnx, yaml, runtime)  # the copy is checked, too: this one has better names
        target.parent.mkdir(parents=True, exist_ok=True)
        return target, _install(onnx, yaml, target, runtime)
    except OSError as error:
        raise RepositoryError(f"{error.filename or repository}: {error.strerror}") from error


def next_version(folder: Path) -> str:
    """Return the version after the highest in a model's folder, a number; 1: there is none.

    Raises:
        OSError: it is there but cannot be read.
    """
    try:
        versions = [each.name for each in folder.iterdir() if each.is_dir() and is_name(each.name)]
    except FileNotFoundError:
        return "1"
    leading = re.match(r"\d+", max(versions, key=version_key, default=""))
    return str(int(leading[0]) + 1 if leading else 1)


def _install(onnx: Path, yaml: Path, target: Path, runtime: Runtime) -> ModelDescription:
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        checked = _copy(onnx, yaml, beside, runtime)
        beside.chmod(0o755)  # the server may well be another user
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(target.parent)
    return checked


def _copy(onnx: Path, yaml: Path, folder: Path, runtime: Runtime) -> ModelDescription:
    network = read_regular_file(onnx)
    contents: dict[str, bytes | None] = {}
    try:
        for name in external_data_names(onnx, network):
            if "/" not in name:  # without the others the check of the copy fails
                contents[name] = read_external_file(onnx, name)
    except ModelError as error:
        raise RepositoryError(error.message) from error
    contents["model.onnx"] = network
    if yaml.is_file():
        contents["model.yaml"] = read_regular_file(yaml)
    for name, content in contents.items():
        if content is not None:
            _write(folder / name, content)
    _sync(folder)
    return check_files(folder / "model.onnx", folder / "model.yaml", runtime)


def _check_name(option: str, name: str) -> None:
    if not is_name(name):
        raise RepositoryError(
            f"{option}: must be 1 to 128 letters, digits and ._+-, the first no sign (got {name!r})"
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
