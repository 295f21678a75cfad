"""Installation of a model into a repository: checked, atomic, and never over another version."""

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
    """Copy a model to `<name>/<version>` in a repository, after a check of the copy.

    The copy is written to a hidden folder and renamed: a server that polls the repository sees the
    whole model or nothing.

    Args:
        onnx: the network; external data in the same folder is copied with it.
        yaml: becomes `model.yaml`; may be missing.
        repository: created if it does not exist.
        key: name and version; an empty version: the next number.
        runtime: how it is run for the check.

    Returns:
        Its folder and its properties.

    Raises:
        RepositoryError: an invalid name, an existing version, a file that cannot be read or
            written, or an unusable model.
    """
    _check_name("--name", key.name)
    try:
        version = key.version or next_version(repository / key.name)
        _check_name("--version", version)
        target = repository / key.name / version
        if target.exists():
            raise RepositoryError(f"{ModelVersion(key.name, version)} already exists: {target}")
        check_files(
            onnx, yaml, runtime
        )  # the copy is checked, too; here errors have the original names
        target.parent.mkdir(parents=True, exist_ok=True)
        return target, _install(onnx, yaml, target, runtime)
    except OSError as error:
        raise RepositoryError(f"{error.filename or repository}: {error.strerror}") from error


def next_version(folder: Path) -> str:
    """Return the number after the highest version in a model's folder; 1 if there is none.

    Raises:
        OSError: the folder exists but cannot be read.
    """
    try:
        versions = [path.name for path in folder.iterdir() if path.is_dir() and is_name(path.name)]
    except FileNotFoundError:
        return "1"
    leading = re.match(r"\d+", max(versions, key=version_key, default=""))
    return str(int(leading[0]) + 1 if leading else 1)


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
    network = read_regular_file(onnx)
    contents: dict[str, bytes | None] = {}
    try:
        for name in external_data_names(onnx, network):
            if "/" not in name:  # without a file in a subfolder, the check of the copy fails
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
