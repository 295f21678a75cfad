"""The labels of the cloud's models: learnt from the service, and held against the device's."""

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
"""Least time between two attempts to learn: the cloud's models may change, or be put right."""
_LONGEST_SECONDS = 1.0
"""Longest wait of a request for the labels, s."""


class CloudLabels:
    """A check of whether the cloud's answers may replace the device's; safe in threads.

    Where the cloud does not list its models' labels (an older service), the classes of each answer
    are held against the device's labels.

    Args:
        rule: what the labels are held against.
        list_models: asks the service; gets the seconds that it may take.
        asked: which model is asked.
        refuses: whether models with other labels are not asked and their answers not taken; else
            there is a warning only.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        rule: LabelRule,
        list_models: Callable[[float], tuple[ModelInfo, ...]],
        asked: ModelHint,
        *,
        refuses: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._list_models = list_models
        self._asked = asked
        self._refuses = refuses
        self._clock = clock
        self._lock = threading.Lock()  # held while one learns: the others wait for that
        self._models: Mapping[ModelHint, tuple[str, ...]] = {}
        self._strange: Mapping[ModelHint, str] = {}  # how, of models that have shown it themselves
        self._current: ModelHint | None = None  # who answers, as far as is known
        self._learnt_at: float | None = None
        self._said = ""

    def start(self) -> None:
        """Learn the labels in a thread, and warn if they differ."""
        threading.Thread(
            target=self._learn, args=(_LONGEST_SECONDS,), name="sightline-labels", daemon=True
        ).start()

    def check_model(self, seconds: float) -> None:
        """Raise if the model that would be asked is known to have other labels.

        Args:
            seconds: to wait for the labels, if they are not known; a second at most.

        Raises:
            SightlineError: FAILED_PRECONDITION, `CLOUD_LABELS_DIFFER`.
        """
        if not self._refuses or not self._rule.device():
            return
        known = self._current is not None and self._current in self._models
        if not known or (self._current is not None and self._difference(self._current)):
            self._learn(min(seconds, _LONGEST_SECONDS))
        current = self._current
        if current is not None and (difference := self._difference(current)):
            raise differ(_called(current), difference)

    def check_answer(self, result: DetectorResult) -> None:
        """Raise if an answer is of a model with other labels.

        Args:
            result: with the device's names for its classes.

        Raises:
            SightlineError: FAILED_PRECONDITION, `CLOUD_LABELS_DIFFER`.
        """
        if not self._refuses or not self._rule.device():
            return
        model = ModelHint(result.model_name, result.model_version)
        self._current = model  # another may have become the default
        if strangers := self._rule.strangers(result):
            self._strange = {**self._strange, model: strangers}
        if difference := self._difference(model):
            self._warn(model, difference)
            raise differ(_called(model), difference)

    def _difference(self, model: ModelHint) -> str:
        """Return how a model's labels differ; empty: they do not, or are not known."""
        labels = self._models.get(model)
        return (self._rule.difference(labels) if labels else "") or self._strange.get(model, "")

    def _learn(self, seconds: float) -> None:
        if not self._lock.acquire(timeout=max(seconds, 0.0)):
            return
        try:
            now = self._clock()
            if self._learnt_at is not None and now - self._learnt_at < _AGAIN_SECONDS:
                return
            self._learnt_at = now
            self._strange = {}
            self._take(self._list_models(max(seconds, 0.001)))
        except SightlineError as error:
            logger.info("the labels of the cloud's models are not known: %s", error)
        finally:
            self._lock.release()

    def _take(self, models: tuple[ModelInfo, ...]) -> None:
        self._models = {ModelHint(one.name, one.version): one.labels for one in models}
        self._current = answering(models, self._asked)
        if self._current is not None and (difference := self._difference(self._current)):
            self._warn(self._current, difference)

    def _warn(self, model: ModelHint, difference: str) -> None:
        """Log that the labels differ, once for each difference."""
        effect = "its answers are not taken" if self._refuses else "its answers have its classes"
        said = (
            f"the cloud's model {_called(model)} has other labels than the device's, {effect}:"
            f" {difference}"
        )
        if said != self._said:
            self._said = said
            logger.warning(said)


def answering(models: tuple[ModelInfo, ...], asked: ModelHint) -> ModelHint | None:
    """Return name and version of the model that answers a request; None: none of these."""
    for one in models:
        named = one.name == asked.name if asked.name else one.default_model
        numbered = one.version == asked.version if asked.version else one.default_version
        if named and numbered:
            return ModelHint(one.name, one.version)
    return None


def _called(model: ModelHint) -> str:
    return f"{model.name} {model.version}".strip()
