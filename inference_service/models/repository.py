"""The models that are served, and the repository that they come from and that may change meanwhile.

Versions are ordered as people order them: 2 before 10, 1.9 before 1.10. The highest that can be
loaded is a model's default version, unless a setting pins another.
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
    read_state,
    scan,
    version_key,
)
from inference_service.models.loader import RepositoryError
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)


class Models:
    """The models that are served at one moment. It never changes: what is new is a new one.

    Args:
        models: in any order.
        default: name of the model that a request gets that names none.
        pinned: version by model that a request gets that names none; else the highest.
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
        """Whether a request for this model that names no version gets this one."""
        return self._defaults.get(model.name) is model


class Repository:
    """What is loaded from a repository, and what it takes to follow the repository's changes.

    A version that cannot be loaded is logged, once for each of its states, and takes no other one
    down. What was loaded stays in use until there is something better: while its replacement is
    loaded beside it, and when that cannot be loaded. A session ends with the last call that uses
    it.

    Not for several threads at once.

    Args:
        folder: the repository.
        default: the default model; empty: the repository's only one when it is started.
        pinned: default version by model.
        load: loads one version from its folder, such as `loader.load_model`.
        publish: gets the models, at the start and after each change.
        on_failure: gets the name of a model that could not be loaded.
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
        self._seen: dict[ModelVersion, State] = {}  # at the last look
        self._tried: dict[ModelVersion, State] = {}  # loaded in this state, or found to be unusable
        self._loaded: dict[ModelVersion, Model] = {}
        self._logged: dict[ModelVersion | None, str] = {}  # None: of the repository

    def start(self) -> None:
        """Load every version of every model, and publishes them; blocks while it does.

        Raises:
            RepositoryError: no folder, no model, no default model or none that can be loaded, or a
                pinned version that cannot be.
        """
        self._seen = scan(self._folder, {})
        self._default = self._choose_default(sorted({key.name for key in self._seen}))
        failures: dict[ModelVersion, str] = {}
        for key, state in self._seen.items():
            try:
                self._try(key, state)
            except RepositoryError as error:
                failures[key] = str(error)
                self._note_failure(key, f"left out: {error}")
        self._require_loaded(failures)
        self._log_empty_models()
        self._publish_loaded()

    def poll(self, *, settled: bool = False) -> None:
        """Take in what has changed; blocks while it loads.

        Args:
            settled: whether everything there is known to be complete. Else only what is as it was
                at the last look is taken in, so that a file is not loaded while it is copied.
        """
        try:
            now = scan(self._folder, self._seen)
        except RepositoryError as error:  # such as a disk that is not mounted just now
            self._log_once(None, f"{error}: the models that are loaded stay")
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
            kept = ": the one that was loaded before stays" if old else ""
            self._note_failure(key, f"left out: {error}{kept}")
        else:
            self._publish_loaded()

    def _try(self, key: ModelVersion, state: State) -> None:
        """Load a version beside what is there, and put it in place if it stayed what it was.

        Raises:
            RepositoryError: it cannot be loaded.
        """
        folder = self._folder / key.name / key.version
        self._tried[key] = state
        try:
            model = self._load(folder)
        except RepositoryError:
            raise
        except Exception as error:  # whatever one model does, the others go on
            logger.debug("loading failed", exc_info=True)
            raise RepositoryError(f"{key}: {type(error).__name__}: {error}") from error
        if read_state(folder) != state:
            del self._tried[key]  # half of one and half of another, maybe: try again
            raise RepositoryError(f"{key}: changed while it was loaded")
        self._loaded[key] = model

    def _unload(self, key: ModelVersion) -> None:
        if key in self._loaded:
            if why := self._reason_to_keep(key):
                self._log_once(key, f"{key} is gone from {self._folder}, but stays loaded: {why}")
                return
            del self._loaded[key]
            logger.warning("unloaded %s: it is gone from %s", key, self._folder)
            self._publish_loaded()
        self._tried.pop(key, None)
        self._logged.pop(key, None)

    def _reason_to_keep(self, key: ModelVersion) -> str:
        """Return why a version that is gone must stay; empty: it need not."""
        if self._pinned.get(key.name) == key.version:
            return "default_versions names it"
        others = [each for each in self._loaded if each.name == key.name and each != key]
        if key.name == self._default and not others:
            return "it is the default model's last version"
        return ""

    def _publish_loaded(self) -> None:
        self._publish(Models([*self._loaded.values()], self._default, self._pinned))

    def _choose_default(self, names: Sequence[str]) -> str:
        has = f"{self._folder}, which holds {', '.join(names)}"
        if self._default and self._default not in names:
            raise RepositoryError(f"default_model: {self._default!r} is not in {has}")
        if not self._default and len(names) > 1:
            raise RepositoryError(
                f"default_model: must be given, since {self._folder} holds {', '.join(names)}"
            )
        for name, version in self._pinned.items():
            if ModelVersion(name, version) not in self._seen:
                raise RepositoryError(
                    f"default_versions: {ModelVersion(name, version)} is not in {has}"
                )
        return self._default or names[0]

    def _require_loaded(self, failures: Mapping[ModelVersion, str]) -> None:
        """Refuse to answer as another model or version than the one that was asked for."""
        for key in [ModelVersion(*pin) for pin in self._pinned.items()]:
            if key not in self._loaded:
                raise RepositoryError(failures[key])
        if not any(key.name == self._default for key in self._loaded):
            raise RepositoryError([t for k, t in failures.items() if k.name == self._default][-1])

    def _note_failure(self, key: ModelVersion, text: str) -> None:
        logger.error(text)
        self._on_failure(key.name)

    def _log_once(self, about: ModelVersion | None, text: str) -> None:
        """Log what is wrong, once for as long as it stays wrong."""
        if self._logged.get(about) != text:
            self._logged[about] = text
            logger.critical(text)

    def _log_empty_models(self) -> None:
        for name in empty_models(self._folder):
            logger.error("left out: model %s: %s holds no version", name, self._folder / name)


def changed(
    now: Mapping[ModelVersion, State],
    before: Mapping[ModelVersion, State],
    tried: Mapping[ModelVersion, State],
) -> list[ModelVersion]:
    """Return the versions that are to be loaded: new or changed, and at rest. Pure."""
    return [
        key for key, state in now.items() if before.get(key) == state and tried.get(key) != state
    ]


def gone(
    now: Container[ModelVersion], before: Container[ModelVersion], known: Iterable[ModelVersion]
) -> list[ModelVersion]:
    """Return the versions that are to be unloaded: not there, and not there before. Pure."""
    return [key for key in known if key not in now and key not in before]


def _not_found(reason: str, text: str) -> SightlineError:
    return SightlineError(grpc.StatusCode.NOT_FOUND, reason, text)
