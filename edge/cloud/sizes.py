"""The input sizes of the cloud's models, fetched in the background."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from edge.cloud.downscale import ModelInput, model_inputs
from edge.cloud.types import ModelHint, ModelInfo
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 30.0
"""Minimum time between two attempts to fetch the sizes."""


class ModelSizes:
    """A cache of the input sizes of the cloud's models. Thread-safe.

    Lookups never wait: until the sizes are known, `of` returns None.

    Args:
        list_models: lists the service's models; called in a background thread.
        clock: a monotonic clock in seconds.
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

    def of(self, hint: ModelHint) -> tuple[int, int] | None:
        """Return the width and height that images must fit; None: do not downscale them.

        Args:
            hint: the requested model. If it is unknown, the sizes are fetched in the background.
        """
        known = self._inputs.get(hint)
        if known is None:
            self._learn()
            return None
        return known.size

    def answered(self, hint: ModelHint, model: ModelHint) -> None:
        """Update the cache with the model that answered: the service's default may have changed.

        Args:
            hint: the requested model.
            model: name and version of the model that answered.
        """
        with self._lock:
            known = self._inputs.get(hint)
            if known is None or known.model == model:
                return
            inputs = dict(self._inputs)
            del inputs[hint]  # do not downscale until the size of the new model is known
            if model in inputs:
                inputs[hint] = inputs[model]
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
            logger.info("images are not downscaled: cannot list the cloud's models: %s", error)
        finally:
            self._learning = False
