"""The sizes of the cloud's models, learnt beside the questions."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from edge.cloud.shrink import ModelInput, model_inputs
from edge.cloud.types import ModelHint, ModelInfo
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 30.0
"""Least time between two attempts to learn."""


class ModelSizes:
    """Knows the inputs of the cloud's models, once it has been asked for one; safe in threads.

    Nobody waits for it: what is asked before the sizes are known is told that they are not.

    Args:
        list_models: asks the service; called in a thread of its own.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        list_models: Callable[[], tuple[ModelInfo, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._list_models = list_models
        self._clock = clock
        self._lock = threading.Lock()
        self._inputs: Mapping[ModelHint, ModelInput] = {}
        self._asked_at: float | None = None
        self._learning = False

    def of(self, asked: ModelHint) -> tuple[int, int] | None:
        """Return width and height in pixels that images are to fit; None: they go whole.

        Args:
            asked: which model will be asked; one that is not known is asked for beside.
        """
        known = self._inputs.get(asked)
        if known is None:
            self._learn()
            return None
        return known.size

    def answered(self, asked: ModelHint, model: ModelHint) -> None:
        """Take note of which model has answered: another may have become the default.

        Args:
            asked: which model was asked.
            model: name and version of the one that has answered.
        """
        with self._lock:
            known = self._inputs.get(asked)
            if known is None or known.model == model:
                return
            inputs = dict(self._inputs)
            del inputs[asked]  # until it is known, images go whole
            if model in inputs:
                inputs[asked] = inputs[model]
            self._inputs = inputs
        if model not in inputs:
            self._learn()

    def _learn(self) -> None:
        now = self._clock()
        with self._lock:
            recent = self._asked_at is not None and now - self._asked_at < _AGAIN_SECONDS
            if self._learning or recent:
                return
            self._learning, self._asked_at = True, now
        threading.Thread(target=self._ask, name="sightline-models", daemon=True).start()

    def _ask(self) -> None:
        try:
            inputs = model_inputs(self._list_models())
            with self._lock:
                self._inputs = inputs
        except SightlineError as error:
            logger.info("images are sent whole: the cloud's models cannot be listed: %s", error)
        finally:
            self._learning = False
