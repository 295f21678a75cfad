"""The model repository: a folder `<name>/<version>/{model.onnx, model.yaml}`, and what is loaded.

Versions are ordered as people order them: 2 before 10, 1.9 before 1.10. The highest is a model's
default version.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from inference_service.models.engine import Model
from inference_service.models.model_spec import ModelSpecError, check_defect_labels, read
from servicekit.errors import SightlineError
from servicekit.vision import ModelError, OnnxDetector

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class RepositoryError(Exception):
    """A model or a repository that cannot be used. One sentence, which names the folder."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """How models are run."""

    providers: tuple[str, ...]
    """Execution providers of ONNX Runtime, first choice first; all must be there."""
    intra_op_threads: int
    """Threads of one run on the CPU, >= 1."""


class Models:
    """The models that are loaded.

    Args:
        models: in any order.
        default: name of the model that a request gets that names none.
    """

    def __init__(self, models: Sequence[Model], default: str) -> None:
        self.all = sorted(models, key=lambda model: (model.name, version_key(model.version)))
        self.default = default

    def find(self, name: str, version: str) -> Model:
        """Returns a model.

        Args:
            name: empty: the default model.
            version: empty: the model's default version.

        Raises:
            SightlineError: NOT_FOUND, `MODEL_NOT_FOUND` or `MODEL_VERSION_NOT_FOUND`.
        """
        name = name or self.default
        versions = [model for model in self.all if model.name == name]
        if not versions:
            raise _not_found("MODEL_NOT_FOUND", f"model {name!r} is not loaded")
        if not version:
            return versions[-1]
        for model in versions:
            if model.version == version:
                return model
        has = ", ".join(model.version for model in versions)
        text = f"model {name!r} has no version {version!r} (it has {has})"
        raise _not_found("MODEL_VERSION_NOT_FOUND", text)

    def is_default_version(self, model: Model) -> bool:
        """Whether a request for this model that names no version gets this one."""
        return self.find(model.name, "") is model


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Returns what versions are sorted by: numbers in them count as numbers."""
    parts = re.findall(r"\d+|\D+", version)
    return tuple((1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts)


def load_all(folder: Path, default: str, load: Callable[[Path], Model]) -> Models:
    """Loads every version of every model of a repository; blocks while it does.

    A version that cannot be loaded is logged and left out; but without the default model's highest
    version the server would answer as another than the one that was asked for, so it is an error.

    Args:
        folder: the repository.
        default: the default model; empty: the repository's only one.
        load: loads one version from its folder, such as `load_model`.

    Raises:
        RepositoryError: no folder, no model, no or no usable default model.
    """
    found = _scan(folder)
    default = _choose_default(folder, sorted(found), default)
    loaded = []
    for name, versions in sorted(found.items()):
        for path in versions:
            try:
                loaded.append(load(path))
            except RepositoryError as error:
                if name == default and path == versions[-1]:
                    raise
                logger.error("left out: %s", error)  # noqa: TRY400 - the sentence says it all
    return Models(loaded, default)


def load_model(path: Path, runtime: Runtime) -> Model:
    """Loads and warms up the model in the folder `<name>/<version>`.

    Raises:
        RepositoryError: the model or its `model.yaml` cannot be used.
    """
    try:
        spec = read(path / "model.yaml")
        detector = OnnxDetector.load(
            path / "model.onnx",
            providers=runtime.providers,
            intra_op_threads=runtime.intra_op_threads,
            names=spec.labels,
        )
        check_defect_labels(spec, detector.names)
        detector.warm_up()
    except (ModelError, ModelSpecError) as error:
        raise RepositoryError(f"model {path.parent.name} version {path.name}: {error}") from error
    model = Model(path.parent.name, path.name, spec, detector)
    _check_size(model)
    _log_loaded(model)
    return model


def _scan(folder: Path) -> dict[str, list[Path]]:
    """Returns the version folders of each model, lowest first."""
    if not folder.is_dir():
        raise RepositoryError(f"model_repository: {folder} is not a folder")
    found = {}
    for model in _folders(folder):
        versions = sorted(_folders(model), key=lambda path: version_key(path.name))
        if versions:
            found[model.name] = versions
        else:
            logger.error("left out: model %s: %s holds no version folder", model.name, model)
    if not found:
        raise RepositoryError(
            f"model_repository: {folder} holds no model (expected <name>/<version>/model.onnx)"
        )
    return found


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]


def _choose_default(folder: Path, names: Sequence[str], default: str) -> str:
    if default and default not in names:
        raise RepositoryError(
            f"default_model: {default!r} is not in {folder}, which holds {', '.join(names)}"
        )
    if not default and len(names) > 1:
        raise RepositoryError(
            f"default_model: must be given, since {folder} holds {', '.join(names)}"
        )
    return default or names[0]


def _check_size(model: Model) -> None:
    height, width = model.detector.input_size
    said = model.spec.input
    if said and (said.width, said.height) != (width, height):
        raise RepositoryError(
            f"model {model.name} version {model.version}: model.yaml: input: must be the model's "
            f"{width} x {height} pixels (got {said.width} x {said.height})"
        )


def _log_loaded(model: Model) -> None:
    height, width = model.detector.input_size
    logger.info(
        "loaded model %s version %s: %d labels, input %d x %d, %s",
        model.name,
        model.version,
        len(model.detector.names),
        width,
        height,
        model.detector.provider,
    )


def _not_found(reason: str, text: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.NOT_FOUND, reason, text)
