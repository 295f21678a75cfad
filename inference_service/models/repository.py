"""The served models, and the model repository, which may change while the service runs.

Versions are ordered with numbers compared as numbers: 2 before 10, 1.9 before 1.10. The highest
version that can be loaded is a model's default version, unless a setting pins another one.
"""

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

import grpc

from inference_service.models.engine import Model
from inference_service.models.folders import (
    ModelVersion,
    State,
    empty_models,
    misplaced,
    read_state,
    scan,
    version_key,
)
from inference_service.models.loader import RepositoryError
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)


class Models:
    """An immutable snapshot of the served models.

    Args:
        models: in any order.
        default: name of the model for requests that name none.
        pinned: version by model name, for requests that name no version; else the highest.
    """

    def __init__(
        self, models: Sequence[Model], default: str, pinned: Mapping[str, str] | None = None
    ) -> None:
        self.all = sorted(models, key=lambda model: (model.name, version_key(model.version)))
        self.default = default
        self._versions: dict[str, dict[str, Model]] = {}
        for model in self.all:
            self._versions.setdefault(model.name, {})[model.version] = model
        highest = {name: [*versions.values()][-1] for name, versions in self._versions.items()}
        self._defaults = {
            name: self._versions[name].get((pinned or {}).get(name, ""), model)
            for name, model in highest.items()
        }

    def find(self, name: str, version: str) -> Model:
        """Return a model.

        Args:
            name: empty: the default model.
            version: empty: the model's default version.

        Raises:
            SightlineError: NOT_FOUND, `MODEL_NOT_FOUND` or `MODEL_VERSION_NOT_FOUND`.
        """
        name = name or self.default
        versions = self._versions.get(name)
        if not versions:
            raise _not_found("MODEL_NOT_FOUND", f"model {name!r} is not loaded")
        if not version:
            return self._defaults[name]
        if version in versions:
            return versions[version]
        text = f"model {name!r} has no version {version!r} (it has {', '.join(versions)})"
        raise _not_found("MODEL_VERSION_NOT_FOUND", text)

    def is_default_version(self, model: Model) -> bool:
        """Return True if requests for this model without a version get this version."""
        return self._defaults.get(model.name) is model


class Repository:
    """The loaded models of a repository, updated by polling it.

    A version that cannot be loaded is logged, once for each of its states, and does not affect
    others. A loaded model stays in use while its replacement is loaded, and if that fails. Its
    session ends with the last call that uses it.

    Not thread-safe.

    Args:
        folder: the repository.
        default: the default model; empty: the repository's only one when it is started.
        pinned: default version by model.
        load: function that loads one version from its folder, such as `loader.load_model`.
        publish: callback for the models, at the start and after each change.
        on_failure: callback for the name of a model that could not be loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        default: str,
        pinned: Mapping[str, str],
        load: Callable[[Path], Model],
        publish: Callable[[Models], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._default = default
        self._pinned = pinned
        self._load = load
        self._publish = publish
        self._on_failure = on_failure
        self._seen: dict[ModelVersion, State] = {}  # at the last poll
        self._tried: dict[
            ModelVersion, State
        ] = {}  # state in which it was loaded or found to be unusable
        self._loaded: dict[ModelVersion, Model] = {}
        self._logged: dict[ModelVersion | None, str] = {}  # None: about the repository

    def start(self) -> None:
        """Load every version of every model, and publish them; blocks.

        Raises:
            RepositoryError: there is no folder, no model, no usable default model, or a pinned
                version cannot be loaded.
        """
        self._seen = scan(self._folder, {})
        self._default = self._choose_default(sorted({key.name for key in self._seen}))
        failures: dict[ModelVersion, str] = {}
        for key, state in self._seen.items():
            try:
                self._try(key, state)
            except RepositoryError as error:
                failures[key] = str(error)
                self._note_failure(key, f"not loaded: {error}")
        self._require_loaded(failures)
        self._log_empty_models()
        self._publish_loaded()

    def poll(self, *, settled: bool = False) -> None:
        """Load and unload changed versions; blocks while loading.

        Args:
            settled: True if all files are known to be complete. Otherwise a version is loaded only
                if its state equals that of the last poll, so that no file is loaded while it is
                being copied.
        """
        try:
            now = scan(self._folder, self._seen)
        except RepositoryError as error:  # such as a disk that is not mounted
            self._log_once(None, f"{error}: the loaded models stay in use")
            return
        self._logged = {key: text for key, text in self._logged.items() if key and key not in now}
        before = now if settled else self._seen
        for key in changed(now, before, self._tried):
            self._load_changed(key, now[key])
        for key in gone(now, before, {*self._tried, *self._loaded}):
            self._unload(key)
        self._seen = now

    def _load_changed(self, key: ModelVersion, state: State) -> None:
        old = key in self._loaded
        try:
            self._try(key, state)
        except RepositoryError as error:
            stays = ": the version that was loaded before stays in use" if old else ""
            self._note_failure(key, f"not loaded: {error}{stays}")
        else:
            self._publish_loaded()

    def _try(self, key: ModelVersion, state: State) -> None:
        """Load a version, and replace the loaded one unless its files changed meanwhile.

        Raises:
            RepositoryError: it cannot be loaded.
        """
        folder = self._folder / key.name / key.version
        self._tried[key] = state
        try:
            model = self._load(folder)
        except RepositoryError:
            raise
        except Exception as error:  # a failure of one model must not affect the others
            logger.debug("loading failed", exc_info=True)
            raise RepositoryError(f"{key}: {type(error).__name__}: {error}") from error
        if read_state(folder) != state:
            del self._tried[key]  # perhaps a mixture of two states: load it again
            raise RepositoryError(f"{key}: changed while it was being loaded")
        self._loaded[key] = model

    def _unload(self, key: ModelVersion) -> None:
        if key in self._loaded:
            if reason := self._reason_to_keep(key):
                self._log_once(
                    key, f"{key} was removed from {self._folder}, but stays loaded: {reason}"
                )
                return
            del self._loaded[key]
            logger.warning("unloaded %s: it was removed from %s", key, self._folder)
            self._publish_loaded()
        self._tried.pop(key, None)
        self._logged.pop(key, None)

    def _reason_to_keep(self, key: ModelVersion) -> str:
        """Return the reason for keeping a removed version; empty if there is none."""
        if self._pinned.get(key.name) == key.version:
            return "default_versions pins it"
        others = [other for other in self._loaded if other.name == key.name and other != key]
        if key.name == self._default and not others:
            return "it is the default model's last version"
        return ""

    def _publish_loaded(self) -> None:
        self._publish(Models([*self._loaded.values()], self._default, self._pinned))

    def _choose_default(self, names: Sequence[str]) -> str:
        contents = f"{self._folder}, which contains {', '.join(names)}"
        if self._default and self._default not in names:
            raise RepositoryError(f"default_model: {self._default!r} is not in {contents}")
        if not self._default and len(names) > 1:
            raise RepositoryError(
                f"default_model: must be set, since {self._folder} contains {', '.join(names)}"
            )
        for name, version in self._pinned.items():
            if ModelVersion(name, version) not in self._seen:
                raise RepositoryError(
                    f"default_versions: {ModelVersion(name, version)} is not in {contents}"
                )
        return self._default or names[0]

    def _require_loaded(self, failures: Mapping[ModelVersion, str]) -> None:
        """Raise if the default model or a pinned version could not be loaded."""
        for key in [ModelVersion(*pin) for pin in self._pinned.items()]:
            if key not in self._loaded:
                raise RepositoryError(failures[key])
        if not any(key.name == self._default for key in self._loaded):
            raise RepositoryError([t for k, t in failures.items() if k.name == self._default][-1])

    def _note_failure(self, key: ModelVersion, text: str) -> None:
        logger.error(text)
        self._on_failure(key.name)

    def _log_once(self, about: ModelVersion | None, text: str) -> None:
        """Log a problem once for as long as it does not change."""
        if self._logged.get(about) != text:
            self._logged[about] = text
            logger.critical(text)

    def _log_empty_models(self) -> None:
        for name in empty_models(self._folder):
            folder = self._folder / name
            there = misplaced(folder)
            logger.error("not loaded: model %s: %s contains no version%s", name, folder, there)


def changed(
    now: Mapping[ModelVersion, State],
    before: Mapping[ModelVersion, State],
    tried: Mapping[ModelVersion, State],
) -> list[ModelVersion]:
    """Return the versions to load: new or changed, and equal in two polls. Pure."""
    return [
        key for key, state in now.items() if before.get(key) == state and tried.get(key) != state
    ]


def gone(
    now: Container[ModelVersion], before: Container[ModelVersion], known: Iterable[ModelVersion]
) -> list[ModelVersion]:
    """Return the versions to unload: missing in two polls. Pure."""
    return [key for key in known if key not in now and key not in before]


def _not_found(reason: str, text: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.NOT_FOUND, reason, text)
