"""Counts of what became of a node's pictures, and how long the answers took."""

import math
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.decide.answer import Answer
from edge.records import CloudReason, Source
from servicekit.errors import SightlineError

_WINDOW = 1024  # answers that the percentiles look back on


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the pictures so far."""

    by_device: int
    """Answered by the device."""
    by_cloud: Mapping[CloudReason, int]
    """Answered by the cloud, by the reason why it was asked."""
    failed: Mapping[str, int]
    """Not answered, by the error's reason, or its class where it has none."""
    p50_milliseconds: float | None
    """Median time to an answer, over the last 1024. None: there is no answer yet."""
    p95_milliseconds: float | None
    """95th percentile of the same."""


class Tally:
    """Counts answers and failures; safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_device = 0
        self._by_cloud: Counter[CloudReason] = Counter()
        self._failed: Counter[str] = Counter()
        self._milliseconds: deque[float] = deque(maxlen=_WINDOW)

    def answered(self, answer: Answer) -> None:
        """Counts an answer."""
        with self._lock:
            self._milliseconds.append(answer.total_milliseconds)
            if answer.source is Source.DEVICE or answer.cloud_reason is None:
                self._by_device += 1
            else:
                self._by_cloud[answer.cloud_reason] += 1

    def failed(self, error: Exception) -> None:
        """Counts a picture that got no answer."""
        reason = error.reason if isinstance(error, SightlineError) else type(error).__name__
        with self._lock:
            self._failed[reason] += 1

    def counts(self) -> Counts:
        """Returns the counts so far."""
        with self._lock:
            ordered = sorted(self._milliseconds)
            by_cloud, failed = dict(self._by_cloud), dict(self._failed)
            by_device = self._by_device
        p50, p95 = _percentile(ordered, 0.50), _percentile(ordered, 0.95)
        return Counts(by_device, by_cloud, failed, p50, p95)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest rank: the least value that `share` of all do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
