"""Which pictures get a place on the model, when, and which are refused at once.

Pure: the time comes in as an argument, work is opaque. A request is admitted only if it is expected
to be answered in time; what waits and can no longer be in time gives up its place before it
costs anything. The order is that of arrival.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from servicekit.errors import SightlineError

_LEARNED_FROM = 100  # runs that an estimate looks back at
_LEARNED_SECONDS = 30.0
_LEAST_RETRY_SECONDS = 0.05


class Estimate:
    """How long one picture takes a model, learned from its latest runs.

    Runs older than half a minute are forgotten: were they not, one slow spell would make the model
    refuse every short deadline for ever, since what is refused teaches nothing.
    """

    def __init__(self) -> None:
        self._runs: deque[tuple[float, float]] = deque(maxlen=_LEARNED_FROM)

    def learn(self, seconds: float, now: float) -> None:
        """Takes in a run that ended now."""
        self._runs.append((now, seconds))

    def mean(self, now: float) -> float:
        """Returns the mean in seconds; 0: nothing is known."""
        known = self._known(now)
        return sum(known) / len(known) if known else 0.0

    def p95(self, now: float) -> float:
        """Returns the 95th percentile in seconds; 0: nothing is known."""
        known = sorted(self._known(now))
        return known[math.ceil(0.95 * len(known)) - 1] if known else 0.0

    def _known(self, now: float) -> list[float]:
        while self._runs and self._runs[0][0] < now - _LEARNED_SECONDS:
            self._runs.popleft()
        return [seconds for _, seconds in self._runs]


@dataclass(slots=True, eq=False)
class Ticket:
    """One picture's place, first in the queue and then on the model."""

    deadline: float
    """When the answer must be out, on the clock of `now`."""
    expected: float = 0.0
    """Seconds that the model is expected to take; 0: not known."""


@dataclass(slots=True)
class Admission:
    """The queue before the model's workers."""

    workers: int
    """Pictures that are worked on at a time, >= 1."""
    queue_size: int
    """Pictures that wait at most, >= 1."""
    _waiting: deque[Ticket] = field(default_factory=deque)
    _running: dict[Ticket, float] = field(default_factory=dict)  # and when it began

    def offer(self, tickets: Sequence[Ticket], estimate: Estimate, now: float) -> None:
        """Puts a request's pictures into the queue, all or none.

        Args:
            tickets: of one request, with one deadline; their `expected` is filled in.
            estimate: of the model that they are for.
            now: seconds, on the clock of the deadlines.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `QUEUE_FULL` or `QUEUE_TOO_SLOW`, with the seconds
                after which there should be room; DEADLINE_EXCEEDED, `DEADLINE_TOO_SHORT`, if an
                idle model would be too slow.
        """
        mean = estimate.mean(now)
        left = tickets[0].deadline - now
        alone = (len(tickets) - 1) // self.workers * mean + estimate.p95(now)
        if left <= alone:
            raise _too_short(left, alone)
        wait = self._wait(now)
        if len(self._waiting) + len(tickets) > self.queue_size:
            raise _overload("QUEUE_FULL", f"{len(self._waiting)} pictures are waiting", wait)
        if left <= wait + alone:
            raise _overload(
                "QUEUE_TOO_SLOW",
                f"the queue of {wait:.3f} s leaves too little of the {left:.3f} s deadline",
                wait + alone - left,
            )
        for ticket in tickets:
            ticket.expected = mean
        self._waiting.extend(tickets)

    def take(self, now: float) -> tuple[Ticket | None, list[Ticket]]:
        """Takes the next picture for a free worker out of the queue.

        Returns:
            The picture (None: no worker is free, or nothing waits), and those that were before
            it and cannot be in time any more.
        """
        late: list[Ticket] = []
        while self._waiting and len(self._running) < self.workers:
            ticket = self._waiting.popleft()
            if ticket.deadline <= now + ticket.expected:
                late.append(ticket)
                continue
            self._running[ticket] = now
            return ticket, late
        return None, late

    def done(self, ticket: Ticket) -> None:
        """Frees the worker of a picture that `take` gave."""
        del self._running[ticket]

    def withdraw(self, ticket: Ticket) -> bool:
        """Takes a picture that nobody waits for out of the queue; False: it is not in it."""
        if ticket not in self._waiting:
            return False
        self._waiting.remove(ticket)
        return True

    def _wait(self, now: float) -> float:
        """Returns the expected seconds until a worker is free for a newcomer; 0: one is."""
        ahead = len(self._waiting) + len(self._running)
        if ahead < self.workers:
            return 0.0
        queued = sum(ticket.expected for ticket in self._waiting)
        running = sum(max(t.expected - (now - at), 0.0) for t, at in self._running.items())
        return (queued + running) / self.workers


def _too_short(left: float, needed: float) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_TOO_SHORT",
        f"the deadline leaves {max(left, 0):.3f} s, the model needs about {needed:.3f} s",
    )


def _overload(reason: str, why: str, retry_after: float) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        f"overloaded: {why}",
        retry_after=max(retry_after, _LEAST_RETRY_SECONDS),
    )
