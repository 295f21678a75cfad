"""The counts of the parts of results that no record can hold."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class LeftOut:
    """Counters of parts of results by kind; see `LoggerStats.left_out`. Thread-safe.

    A detector's loop must not end because of its log, so nothing is raised. The first of each kind
    is reported as a warning: a loop that repeats it 30 times a second must not fill a log file.

    Args:
        where: what leaves them out, for the warning.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, parts: Mapping[str, int], error: Exception | None = None) -> None:
        """Count parts by kind.

        Args:
            parts: number of parts by kind.
            error: the cause. None: the kind says it.
        """
        with self._lock:
            new = [kind for kind in parts if kind not in self._counts]
            self._counts.update(parts)
        cause = "" if error is None else f": {type(error).__name__}: {error}"
        for kind in new:
            logger.warning(
                "%s: a %s of a model's results was left out%s; further ones are only counted",
                self._where,
                kind,
                cause,
            )

    def counts(self) -> dict[str, int]:
        """Return the counts so far by kind."""
        with self._lock:
            return dict(self._counts)
