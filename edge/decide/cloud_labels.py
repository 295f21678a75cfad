"""Comparison of the cloud models' labels, fetched from the service, with the device's labels."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from edge.cloud.types import ModelHint, ModelInfo
from edge.decide.labels import LabelRule, differ
from edge.detect.base import DetectorResult
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 30.0
"""Minimum time between two fetches: the cloud's models may change, or be corrected."""
_MAX_WAIT_SECONDS = 1.0
"""Maximum time that a request waits for the labels."""


class CloudLabels:
    """A check that the cloud's answers use the labels of the device's model. Thread-safe.

    If the service does not list its models' labels (an older version), the check compares the
    classes of each answer with the device's labels.

    Args:
        rule: the device's labels, and how to compare with them.
        list_models: lists the service's models, within the seconds that it is passed.
        requested: the model that requests name.
        rejects: raise an error for models and answers with different labels; else only log a
            warning.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        rule: LabelRule,
        list_models: Callable[[float], tuple[ModelInfo, ...]],
        requested: ModelHint,
        *,
        rejects: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._list_models = list_models
        self._requested = requested
        self._rejects = rejects
        self._clock = clock
        self._lock = threading.Lock()  # held during a fetch, for which other requests wait
        self._models: Mapping[ModelHint, tuple[str, ...]] = {}
        self._answer_differences: Mapping[ModelHint, str] = {}  # seen in answers of a model
        self._current: ModelHint | None = None  # the model that answers, if known
        self._fetched_at: float | None = None
        self._last_warning = ""

    def start(self) -> None:
        """Fetch the labels in a background thread, and log a warning if they differ."""
        threading.Thread(
            target=self._fetch, args=(_MAX_WAIT_SECONDS,), name="sightline-labels", daemon=True
        ).start()

    def check_model(self, seconds: float) -> None:
        """Raise an error if the model that would answer is known to have other labels.

        Args:
            seconds: maximum wait for labels that are not known yet; never more than 1 s.

        Raises:
            SightlineError: FAILED_PRECONDITION, `CLOUD_LABELS_DIFFER`.
        """
        if not self._rejects or not self._rule.device():
            return
        known = self._current is not None and self._current in self._models
        if not known or (self._current is not None and self._difference(self._current)):
            self._fetch(min(seconds, _MAX_WAIT_SECONDS))
        current = self._current
        if current is not None and (difference := self._difference(current)):
            raise differ(_full_name(current), difference)

    def check_answer(self, result: DetectorResult) -> None:
        """Raise an error if an answer is from a model with other labels.

        Args:
            result: the answer, with its classes renamed to the device's.

        Raises:
            SightlineError: FAILED_PRECONDITION, `CLOUD_LABELS_DIFFER`.
        """
        if not self._rejects or not self._rule.device():
            return
        model = ModelHint(result.model_name, result.model_version)
        self._current = model  # the service's default model may have changed
        if difference := self._rule.answer_difference(result):
            self._answer_differences = {**self._answer_differences, model: difference}
        if difference := self._difference(model):
            self._warn(model, difference)
            raise differ(_full_name(model), difference)

    def _difference(self, model: ModelHint) -> str:
        """Return how a model's labels differ; empty: they are the same, or not known."""
        labels = self._models.get(model)
        difference = self._rule.difference(labels) if labels else ""
        return difference or self._answer_differences.get(model, "")

    def _fetch(self, seconds: float) -> None:
        if not self._lock.acquire(timeout=max(seconds, 0.0)):
            return
        try:
            now = self._clock()
            if self._fetched_at is not None and now - self._fetched_at < _AGAIN_SECONDS:
                return
            self._fetched_at = now
            self._answer_differences = {}
            self._store(self._list_models(max(seconds, 0.001)))
        except SightlineError as error:
            logger.info("the labels of the cloud's models are not known: %s", error)
        finally:
            self._lock.release()

    def _store(self, models: tuple[ModelInfo, ...]) -> None:
        self._models = {ModelHint(model.name, model.version): model.labels for model in models}
        self._current = answering(models, self._requested)
        if self._current is not None and (difference := self._difference(self._current)):
            self._warn(self._current, difference)

    def _warn(self, model: ModelHint, difference: str) -> None:
        """Log that the labels differ, once for each difference."""
        effect = "its answers are rejected" if self._rejects else "its answers have its classes"
        warning = (
            f"the cloud's model {_full_name(model)} has other labels than the device's, {effect}:"
            f" {difference}"
        )
        if warning != self._last_warning:
            self._last_warning = warning
            logger.warning(warning)


def answering(models: tuple[ModelInfo, ...], requested: ModelHint) -> ModelHint | None:
    """Return name and version of the model that answers a request; None: none of these models."""
    for model in models:
        name_matches = model.name == requested.name if requested.name else model.default_model
        if requested.version:
            version_matches = model.version == requested.version
        else:
            version_matches = model.default_version
        if name_matches and version_matches:
            return ModelHint(model.name, model.version)
    return None


def _full_name(model: ModelHint) -> str:
    return f"{model.name} {model.version}".strip()
