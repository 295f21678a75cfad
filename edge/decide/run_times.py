"""The 95th percentile of the durations of the device's latest runs."""

import threading
from collections import deque

from edge.percentile import nearest_rank

_WINDOW = 200
_MIN_RUNS = 20
"""Number of runs below which there is no percentile: of fewer it would be their maximum."""


class RunTimes:
    """The durations of the latest 200 successful runs. Thread-safe.

    A run whose caller has stopped waiting counts with its full duration once it ends: without the
    slow runs the percentile would be too low. Failed runs do not count.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._p95: float | None = None

    def add(self, seconds: float) -> None:
        """Add the duration of a successful run."""
        with self._lock:
            self._seconds.append(seconds)
            self._p95 = None

    def p95(self) -> float | None:
        """Return the 95th percentile in seconds (nearest rank); None: not known yet."""
        with self._lock:
            if len(self._seconds) < _MIN_RUNS:
                return None
            if self._p95 is None:
                self._p95 = nearest_rank(sorted(self._seconds), 0.95)
            return self._p95
