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
        """Seconds from sending to the end."""
        return self.ended - self.sent


class MeasurementWindow:
    """The time of a closed loop that counts: it begins when every caller was answered once.

    Args:
        callers: how many there are, numbered from 0.
        seconds: how long it is.
    """

    def __init__(self, callers: int, seconds: float) -> None:
        self.began = math.inf
        self.seconds = seconds
        self._silent = set(range(callers))

    def answered(self, caller: int, now: float) -> None:
        """Take in that a caller was answered, or will not be any more."""
        self._silent.discard(caller)
        if not self._silent:
            self.began = min(self.began, now)

    def over(self, now: float) -> bool:
        """Return whether it has ended."""
        return now >= self.began + self.seconds


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: callers that each send the next call when the last one is answered."""

    per_s: float
    p99_ms: float
    calls: int
    """All that were made, also those before and after the time that counts."""
    cpu_ms: float = 0.0
    """CPU time of the server's process per call, in all its threads."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """What an open loop got."""

    good_per_s: float
    """Answers that came within their deadline and before the last call was sent, per second."""
    late: int
    """Answers that came after their deadline."""
    p99_ms: float | None
    """Of the answers in time. None: there were none."""
    codes: dict[str, int]
    """Calls by how they ended."""


def milliseconds(seconds: float) -> float:
    """Return milliseconds with three digits behind the point."""
    return round(seconds * 1000, 3)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that `share` of the values do not exceed (nearest rank).

    Args:
        values: at least one.
        share: in (0, 1].

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values: must be at least one")
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def closed(calls: Iterable[Call], began: float, seconds: float) -> Closed:
    """Return the figures of a closed loop whose every call was answered.

    A call that lies across an edge of the time counts by the part of its own time that is inside:
    whole calls would make the rate depend on how the calls happen to lie. The 99th percentile is of
    all that lie inside, wholly or in part.

    Args:
        calls: all that were made, those before and after the time as well.
        began: when the time began that counts, in the midst of the loop.
        seconds: how long it was.

    Raises:
        ValueError: no call lies in it.
        RuntimeError: one was not answered, so that the rate would be none of answers.
    """
    every, end = list(calls), began + seconds
    if refused := Counter(call.code for call in every if call.code != OK):
        raise RuntimeError(f"calls of a closed loop were not answered: {dict(refused)}")
    inside = [call for call in every if call.sent < end and call.ended > began]
    slowest = milliseconds(percentile([call.latency for call in inside], 0.99))
    parts = ((min(one.ended, end) - max(one.sent, began)) / one.latency for one in inside)
    return Closed(per_s=sum(parts) / seconds, p99_ms=slowest, calls=len(every))


def with_cpu(found: Closed, seconds: float) -> Closed:
    """Return the figures of a closed loop with the CPU time that all its calls took."""
    return replace(found, cpu_ms=milliseconds(seconds / found.calls))


def goodput(calls: Iterable[Call], deadline: float, began: float, seconds: float) -> Goodput:
    """Return what an open loop got, strictly: what was answered after its end does not count.

    Args:
        calls: all that were sent.
        deadline: of each call, seconds from when it was sent.
        began: when the loop began.
        seconds: how long calls were sent.
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
    """Return the seconds from `began` until a call was sent that took what calls usually take.

    Args:
        probes: calls one after the other.
        began: when the load ended.
        usual: seconds that a call may take.

    Returns:
        None: no call was so.
    """
    for probe in probes:
        if probe.code == OK and probe.latency <= usual:
            return probe.sent - began
    return None


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of rounds, in each of which both were measured.

    Raises:
        ValueError: the rounds differ in number, or there are none.
    """
    if not ours:
        raise ValueError("ours: must be at least one round")
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
