"""The arithmetic of the figures: times in, figures out. Pure."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

OK = "OK"


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its caller saw it, times in seconds on the caller's clock."""

    sent: float
    ended: float
    code: str
    """`OK`, or the name of the gRPC status or the HTTP status, such as `HTTP_503`."""

    @property
    def latency(self) -> float:
        """The seconds from sending to the end."""
        return self.ended - self.sent


class MeasurementWindow:
    """The time of a closed loop that counts: it begins when every caller was answered once.

    Args:
        callers: number of callers, which are numbered from 0.
        seconds: length of the window.
    """

    def __init__(self, callers: int, seconds: float) -> None:
        self.began = math.inf
        self.seconds = seconds
        self._silent = set(range(callers))

    def answered(self, caller: int, now: float) -> None:
        """Count a caller as answered, or as one that will not be answered any more."""
        self._silent.discard(caller)
        if not self._silent:
            self.began = min(self.began, now)

    def over(self, now: float) -> bool:
        """Return True if the window has ended."""
        return now >= self.began + self.seconds


@dataclass(frozen=True, slots=True)
class Closed:
    """Figures of a closed loop: each caller sends its next call when the last one is answered."""

    per_s: float
    p99_ms: float
    calls: int
    """All calls, including those before and after the window."""
    cpu_ms: float = 0.0
    """CPU time of the server's process per call, in all its threads."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """Figures of an open loop."""

    good_per_s: float
    """Answers within their deadline and before the last call was sent, per second."""
    late: int
    """Answers after their deadline."""
    p99_ms: float | None
    """Latency of the answers in time; None if there were none."""
    codes: dict[str, int]
    """Number of calls by status."""


def milliseconds(seconds: float) -> float:
    """Return milliseconds rounded to three decimal places."""
    return round(seconds * 1000, 3)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of the values do not exceed (nearest rank).

    Args:
        values: at least one.
        share: in (0, 1].

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values must hold at least one value")
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def closed(calls: Iterable[Call], began: float, seconds: float) -> Closed:
    """Return the figures of a closed loop whose every call was answered.

    A call that crosses an edge of the window counts by the share of its duration that is inside:
    counting whole calls would make the rate depend on chance. The 99th percentile is that of all
    calls that lie inside, wholly or in part.

    Args:
        calls: all calls, including those before and after the window.
        began: start of the window, some time after the start of the loop.
        seconds: length of the window.

    Raises:
        ValueError: no call lies in the window.
        RuntimeError: a call was not answered, so the rate would not be one of answers.
    """
    every, end = list(calls), began + seconds
    if refused := Counter(call.code for call in every if call.code != OK):
        raise RuntimeError(f"calls of a closed loop were not answered: {dict(refused)}")
    inside = [call for call in every if call.sent < end and call.ended > began]
    slowest = milliseconds(percentile([call.latency for call in inside], 0.99))
    parts = ((min(call.ended, end) - max(call.sent, began)) / call.latency for call in inside)
    return Closed(per_s=sum(parts) / seconds, p99_ms=slowest, calls=len(every))


def with_cpu(figures: Closed, seconds: float) -> Closed:
    """Return the figures of a closed loop with the CPU time per call added."""
    return replace(figures, cpu_ms=milliseconds(seconds / figures.calls))


def goodput(calls: Iterable[Call], deadline: float, began: float, seconds: float) -> Goodput:
    """Return the figures of an open loop; answers after its end do not count.

    Args:
        calls: all calls that were sent.
        deadline: deadline of each call, seconds after it was sent.
        began: start of the loop.
        seconds: duration for which calls were sent.
    """
    every = list(calls)
    answered = [call for call in every if call.code == OK]
    good = [call for call in answered if call.latency <= deadline]
    counted = sum(call.ended <= began + seconds for call in good)
    slowest = percentile([call.latency for call in good], 0.99) if good else None
    return Goodput(
        good_per_s=counted / seconds,
        late=len(answered) - len(good),
        p99_ms=None if slowest is None else milliseconds(slowest),
        codes=dict(sorted(Counter(call.code for call in every).items())),
    )


def recovered_after(probes: Iterable[Call], began: float, usual: float) -> float | None:
    """Return the seconds from `began` until a call was sent that took at most `usual`.

    Args:
        probes: sequential calls.
        began: end of the load.
        usual: maximum duration of a call, seconds.

    Returns:
        None if no call was that fast.
    """
    for probe in probes:
        if probe.code == OK and probe.latency <= usual:
            return probe.sent - began
    return None


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of rounds that each measured both values.

    Raises:
        ValueError: the rounds differ in number, or there are none.
    """
    if not ours:
        raise ValueError("ours must hold at least one round")
    return statistics.median(own / base for own, base in zip(ours, theirs, strict=True))
