"""The sizes of the cloud's models, learnt beside the questions."""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from edge.cloud.shrink import input_sizes
from edge.cloud.types import ModelHint, ModelInfo
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 30.0
"""Least time between two attempts to learn."""


class ModelSizes:
    """Knows the inputs of the cloud's detectors, once it has been asked for one; safe in threads.

    Nobody waits for it: what is asked before the sizes are known is told that they are not.

    Args:
        list_models: asks the service; called in a thread of its own.
    """

    def __init__(self, list_models: Callable[[], tuple[ModelInfo, ...]]) -> None:
        self._list_models = list_models
        self._lock = threading.Lock()
        self._sizes: Mapping[ModelHint, tuple[int, int]] = {}
        self._asked_at: float | None = None
        self._learning = False

    def of(self, model: ModelHint) -> tuple[int, int] | None:
        """Returns width and height of a model's input in pixels; None: it is not known, or none."""
        size = self._sizes.get(model)
        if size is None:
            self._learn()
        return size

    def answered(self, name: str, version: str) -> None:
        """Takes note of who answered: one that is not known may have become the default."""
        if self._sizes and ModelHint(name, version) not in self._sizes:
            self._learn()

    def _learn(self) -> None:
        now = time.monotonic()
        with self._lock:
            recent = self._asked_at is not None and now - self._asked_at < _AGAIN_SECONDS
            if self._learning or recent:
                return
            self._learning, self._asked_at = True, now
        threading.Thread(target=self._ask, name="sightline-models", daemon=True).start()

    def _ask(self) -> None:
        try:
            self._sizes = input_sizes(self._list_models())
        except SightlineError as error:
            logger.info("pictures are sent whole: the cloud's models cannot be listed: %s", error)
        finally:
            self._learning = False
