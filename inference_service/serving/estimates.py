"""Estimated run times of a model, learned from recent runs. Pure: the time is an argument."""

import bisect
import math
from collections import deque

_LEARNED_FROM = 100  # runs of one size that are looked back at
_LEARNED_SECONDS = 30.0
_SHARE = 0.95  # what the slowest runs beyond it took is not counted


class Estimates:
    """Seconds that a member takes: trimmed mean and 95th percentile.

    A member's time is that of decoding its picture, which grows with the picture, and that of its
    run, which grows with the rows of the run. The two are learned apart, or the small pictures of
    one caller would be refused for the large ones of another.

    One slow run (a page fault, a noisy neighbour) says nothing about the next one, so the slowest
    twentieth, at least one, counts for nothing. Runs older than half a minute are forgotten: were
    they not, a slow spell would make the model refuse every short deadline for ever, since what is
    refused teaches nothing.
    """

    def __init__(self) -> None:
        # Rows never cost less together than fewer of them did, nor more than each on its own.
        self._runs = _SizeClasses(scale_down=False)
        # Twice the pixels take twice the time, about, and half of them half of it.
        self._decodes = _SizeClasses(scale_down=True)

    def learn(self, rows: int, seconds: float, now: float) -> None:
        """Take in a run that ended now.

        Args:
            rows: of its input, >= 1.
            seconds: that it took, without decoding.
            now: seconds on any clock that does not go back.
        """
        self._runs.add(rows, seconds, now)

    def learn_decoding(self, effort: int, seconds: float, now: float) -> None:
        """Take in a picture that was decoded and prepared.

        Args:
            effort: pixels that were worked on, >= 1; see `OpenedImage.effort`.
            seconds: that it took.
            now: as for `learn`.
        """
        self._decodes.add(effort, seconds, now)

    def mean(self, rows: int, now: float, effort: int = 0) -> float:
        """Return the mean in seconds; 0: nothing is known.

        Args:
            rows: of the run, >= 1.
            now: as for `learn`.
            effort: of the member's picture, pixels; 0: there is nothing to decode.
        """
        return self._figures(rows, now, effort)[0]

    def p95(self, rows: int, now: float, effort: int = 0) -> float:
        """Return the 95th percentile in seconds; 0: nothing is known. Arguments as for `mean`."""
        return self._figures(rows, now, effort)[1]

    def decoding(self, effort: int, now: float) -> float:
        """Return the mean seconds of decoding a picture; 0: nothing is known, or there is none."""
        return self._decodes.figures(effort, now)[0] if effort else 0.0

    def _figures(self, rows: int, now: float, effort: int) -> tuple[float, float]:
        mean, p95 = self._runs.figures(rows, now)
        if effort:
            more = self._decodes.figures(effort, now)
            return mean + more[0], p95 + more[1]
        return mean, p95


class _SizeClasses:
    """What is known by size, in classes of 1, 2, 3 to 4, 5 to 8, and so on.

    A class of which nothing is known is told from its neighbour.
    """

    def __init__(self, *, scale_down: bool) -> None:
        self._known: dict[int, _Runs] = {}  # by the largest size of the class
        self._scale_down = scale_down

    def add(self, size: int, seconds: float, now: float) -> None:
        self._known.setdefault(_size_class(size), _Runs()).add(seconds, now)

    def figures(self, size: int, now: float) -> tuple[float, float]:
        """Return mean and 95th percentile; both 0: nothing is known."""
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
            if not runs.forget_before(now - _LEARNED_SECONDS):
                del self._known[size]


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
        """Return whether any are left."""
        while self._latest and self._latest[0][0] < when:
            self._drop_oldest()
        return bool(self._latest)

    def figures(self) -> tuple[float, float]:
        """Return mean and 95th percentile of what counts; there must be a run."""
        if self._figures is None:
            count = len(self._ordered)
            counted = self._ordered[: max(min(math.ceil(_SHARE * count), count - 1), 1)]
            self._figures = sum(counted) / len(counted), counted[-1]
        return self._figures

    def _drop_oldest(self) -> None:
        _, seconds = self._latest.popleft()
        del self._ordered[bisect.bisect_left(self._ordered, seconds)]
        self._figures = None


def _size_class(size: int) -> int:
    return 1 << (size - 1).bit_length()
