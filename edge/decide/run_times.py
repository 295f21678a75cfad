"""How long the device mostly takes, learnt from its latest runs."""

import threading
from collections import deque

from edge.percentile import nearest_rank

_WINDOW = 200
_LEAST = 20
"""Runs before anything is said: the 95th percentile of fewer is their slowest."""


class RunTimes:
    """The latest 200 runs that answered; safe in threads.

    A run that nobody waited for to the end counts with its true length, once it ends: else the
    slow ones would be forgotten, and the percentile sink. One that fails says nothing of how long
    an answer takes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._p95: float | None = None

    def add(self, seconds: float) -> None:
        """Take in a run that answered."""
        with self._lock:
            self._seconds.append(seconds)
            self._p95 = None

    def p95(self) -> float | None:
        """Return the 95th percentile in seconds (nearest rank); None: not known yet."""
        with self._lock:
            if len(self._seconds) < _LEAST:
                return None
            if self._p95 is None:
                self._p95 = nearest_rank(sorted(self._seconds), 0.95)
            return self._p95
