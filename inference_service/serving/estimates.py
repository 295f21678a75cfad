"""How long a model takes, learned from what it did of late. Pure: the time comes in."""

import bisect
import math
from collections import deque

_LEARNED_FROM = 100  # runs of one size that are looked back at
_LEARNED_SECONDS = 30.0
_FRESH_SECONDS = 1.0
_SHARE = 0.95  # what the slowest runs beyond it took is not counted


class Estimates:
    """Seconds that a run of so many rows takes: trimmed mean and 95th percentile.

    Rows are put into classes of 1, 2, 3 to 4, 5 to 8, and so on. A class of which nothing is known
    is told from its neighbour: rows never cost less together than fewer of them did, nor more than
    each on its own.

    One slow run (a page fault, a noisy neighbour) says nothing about the next one, so the slowest
    twentieth, at least one, counts for nothing. Runs older than half a minute are forgotten: were
    they not, a slow spell would make the model refuse every short deadline for ever, since what is
    refused teaches nothing.
    """

    def __init__(self) -> None:
        self._runs: dict[int, _Runs] = {}  # by size class
        self._learned_at = -math.inf

    def learn(self, rows: int, seconds: float, now: float) -> None:
        """Takes in a run that ended now.

        Args:
            rows: of its input, >= 1.
            seconds: that it took.
            now: seconds on any clock that does not go back.
        """
        self._runs.setdefault(_size_class(rows), _Runs()).add(seconds, now)
        self._learned_at = now

    def mean(self, rows: int, now: float) -> float:
        """Returns the mean in seconds; 0: nothing is known."""
        return self._estimate(rows, now)[0]

    def p95(self, rows: int, now: float) -> float:
        """Returns the 95th percentile in seconds; 0: nothing is known."""
        return self._estimate(rows, now)[1]

    def fresh(self, now: float) -> bool:
        """Whether a run of the last second is known; what is older may be worth a new try."""
        return now - self._learned_at < _FRESH_SECONDS

    def _estimate(self, rows: int, now: float) -> tuple[float, float]:
        self._forget(now)
        if not self._runs:
            return 0.0, 0.0
        wanted = _size_class(rows)
        below = [known for known in self._runs if known <= wanted]
        known = max(below) if below else min(self._runs)
        mean, p95 = self._runs[known].figures()
        times = max(wanted / known, 1)
        return mean * times, p95 * times

    def _forget(self, now: float) -> None:
        for size, runs in tuple(self._runs.items()):
            if not runs.forget_before(now - _LEARNED_SECONDS):
                del self._runs[size]


class _Runs:
    """The latest runs of one size, kept in order: they are looked at several times a call."""

    __slots__ = ("_figures", "_latest", "_ordered")

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque()  # when, and how long
        self._ordered: list[float] = []
        self._figures: tuple[float, float] | None = None  # until something changes

    def add(self, seconds: float, now: float) -> None:
        if len(self._latest) == _LEARNED_FROM:
            self._drop_oldest()
        self._latest.append((now, seconds))
        bisect.insort(self._ordered, seconds)
        self._figures = None

    def forget_before(self, when: float) -> bool:
        """Returns whether any are left."""
        while self._latest and self._latest[0][0] < when:
            self._drop_oldest()
        return bool(self._latest)

    def figures(self) -> tuple[float, float]:
        """Returns mean and 95th percentile of what counts; there must be a run."""
        if self._figures is None:
            count = len(self._ordered)
            counted = self._ordered[: max(min(math.ceil(_SHARE * count), count - 1), 1)]
            self._figures = sum(counted) / len(counted), counted[-1]
        return self._figures

    def _drop_oldest(self) -> None:
        _, seconds = self._latest.popleft()
        del self._ordered[bisect.bisect_left(self._ordered, seconds)]
        self._figures = None


def _size_class(rows: int) -> int:
    return 1 << (rows - 1).bit_length()
