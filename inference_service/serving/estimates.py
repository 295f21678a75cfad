"""Estimated run times of a model, learned from recent runs. Pure: the time is an argument."""

import bisect
import math
from collections import deque

_WINDOW_RUNS = 100  # of one size
_WINDOW_SECONDS = 30.0
_KEPT_SHARE = 0.95  # the slowest runs beyond it are ignored


class Estimates:
    """Estimates of a member's duration: trimmed mean and 95th percentile.

    A member's duration is that of decoding its image, which grows with the image, and that of its
    run, which grows with the rows of the run. They are learned separately, so that large images of
    one caller do not cause small ones of another to be refused.

    A single slow run (a page fault, a noisy neighbour) does not predict the next one: the slowest
    5 %, at least one, are ignored. Runs older than 30 s are forgotten: otherwise the model would
    refuse every short deadline after a slow period, since refused requests teach nothing.
    """

    def __init__(self) -> None:
        # A batch never takes less time than a smaller one, nor more than its rows one by one.
        self._runs = _SizeClasses(scale_down=False)
        # Decoding time is roughly proportional to the pixels.
        self._decodes = _SizeClasses(scale_down=True)

    def learn(self, rows: int, seconds: float, now: float) -> None:
        """Record a run that ended now.

        Args:
            rows: rows of its input, >= 1.
            seconds: duration without decoding.
            now: time on a monotonic clock, s.
        """
        self._runs.add(rows, seconds, now)

    def learn_decoding(self, effort: int, seconds: float, now: float) -> None:
        """Record the decoding and preprocessing of an image.

        Args:
            effort: processed pixels, >= 1; see `OpenedImage.effort`.
            seconds: duration.
            now: see `learn`.
        """
        self._decodes.add(effort, seconds, now)

    def mean(self, rows: int, now: float, effort: int = 0) -> float:
        """Return the mean in seconds; 0 if nothing is known.

        Args:
            rows: rows of the run, >= 1.
            now: see `learn`.
            effort: pixels of the member's image; 0 if there is none.
        """
        return self._figures(rows, now, effort)[0]

    def p95(self, rows: int, now: float, effort: int = 0) -> float:
        """Return the 95th percentile in seconds; 0 if nothing is known. See `mean`."""
        return self._figures(rows, now, effort)[1]

    def decoding(self, effort: int, now: float) -> float:
        """Return the mean seconds of decoding an image; 0 if nothing is known or there is none."""
        return self._decodes.figures(effort, now)[0] if effort else 0.0

    def _figures(self, rows: int, now: float, effort: int) -> tuple[float, float]:
        mean, p95 = self._runs.figures(rows, now)
        if effort:
            more = self._decodes.figures(effort, now)
            return mean + more[0], p95 + more[1]
        return mean, p95


class _SizeClasses:
    """Recent runs by size, in classes of 1, 2, 3 to 4, 5 to 8, and so on.

    A class without runs is extrapolated from its neighbour.
    """

    def __init__(self, *, scale_down: bool) -> None:
        self._known: dict[int, _Runs] = {}  # by the largest size of the class
        self._scale_down = scale_down

    def add(self, size: int, seconds: float, now: float) -> None:
        self._known.setdefault(_size_class(size), _Runs()).add(seconds, now)

    def figures(self, size: int, now: float) -> tuple[float, float]:
        """Return mean and 95th percentile; both 0 if nothing is known."""
        self._forget(now)
        if not self._known:
            return 0.0, 0.0
        wanted = _size_class(size)
        below = [known for known in self._known if known <= wanted]
        known = max(below) if below else min(self._known)
        mean, p95 = self._known[known].figures()
        times = wanted / known if self._scale_down else max(wanted / known, 1.0)
        return mean * times, p95 * times

    def _forget(self, now: float) -> None:
        for size, runs in tuple(self._known.items()):
            if not runs.forget_before(now - _WINDOW_SECONDS):
                del self._known[size]


class _Runs:
    """The latest runs of one size, sorted: their figures are read several times per call."""

    __slots__ = ("_figures", "_latest", "_ordered")

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque()  # time and duration
        self._ordered: list[float] = []
        self._figures: tuple[float, float] | None = None  # cached until a run is added or removed

    def add(self, seconds: float, now: float) -> None:
        if len(self._latest) == _WINDOW_RUNS:
            self._drop_oldest()
        self._latest.append((now, seconds))
        bisect.insort(self._ordered, seconds)
        self._figures = None

    def forget_before(self, when: float) -> bool:
        """Forget runs before a time; return True if any are left."""
        while self._latest and self._latest[0][0] < when:
            self._drop_oldest()
        return bool(self._latest)

    def figures(self) -> tuple[float, float]:
        """Return trimmed mean and 95th percentile; there must be a run."""
        if self._figures is None:
            count = len(self._ordered)
            counted = self._ordered[: max(min(math.ceil(_KEPT_SHARE * count), count - 1), 1)]
            self._figures = sum(counted) / len(counted), counted[-1]
        return self._figures

    def _drop_oldest(self) -> None:
        _, seconds = self._latest.popleft()
        del self._ordered[bisect.bisect_left(self._ordered, seconds)]
        self._figures = None


def _size_class(size: int) -> int:
    return 1 << (size - 1).bit_length()
