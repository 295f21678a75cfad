"""Expected start times of waiting members. Pure."""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from inference_service.serving.tickets import Lane, Ticket

T = TypeVar("T", float, tuple[float, float])


_LONG_FACTOR, _MIN_LONG_SECONDS = 4.0, 0.05  # of a long run, relative to a short one
_MIN_PATIENCE = 0.01  # s, between two checks of a member that may overtake


@dataclass(slots=True)
class ActiveRun:
    """A run in progress."""

    lane: Lane
    begun: float
    """Start on the clock of `now`, s."""
    seconds: float
    """Expected duration."""
    batch: Sequence[Ticket]
    """Members of the run."""

    def rest(self, now: float) -> float:
        """Return the expected remaining seconds."""
        return max(self.begun + self.seconds - now, 0.0)

    def length(self, now: float) -> float:
        """Return the total duration as far as known, s."""
        return max(self.seconds, now - self.begun)

    def busy(self, now: float) -> float:
        """Return the seconds for which its worker may stay busy.

        An overdue run may take as long again as it is overdue.
        """
        return abs(self.begun + self.seconds - now)


class Overtaking:
    """A policy for short runs that may start beside long ones while every worker is busy.

    A run cannot be interrupted, but a long one can share its processor with a short one. One short
    run at a time may therefore start beside each long one, if it would be late otherwise.

    Args:
        runs: the runs in progress, at least one.
        now: time on a monotonic clock, s.
    """

    def __init__(self, runs: Collection[ActiveRun], now: float) -> None:
        lengths = sorted(run.length(now) for run in runs)
        # More than half of the runs must be long.
        self.longest = _short_beside(lengths[(len(lengths) - 1) // 2])
        """Duration of the longest run that may overtake, s; 0 if none may."""
        self._busy = min(run.busy(now) for run in runs)
        self._now = now

    def is_short(self, ticket: Ticket) -> bool:
        """Return True if a member is short enough to overtake."""
        return 0 < ticket.alone <= self.longest

    def must_overtake(self, ticket: Ticket) -> bool:
        """Return True if a member would wait for most of its time."""
        return self._busy > _patience(ticket, self._now)

    def next_check(self, ticket: Ticket) -> float:
        """Return the time at which a member that can wait must be checked again."""
        return self._now + max(_patience(ticket, self._now), _MIN_PATIENCE)


class Slots:
    """The expected free times of the workers, in seconds from now.

    Args:
        workers: concurrent runs, >= 1, without those that overtake.
        runs: the runs in progress.
        now: time on a monotonic clock, s.
    """

    def __init__(self, workers: int, runs: Collection[ActiveRun], now: float) -> None:
        self._workers = workers
        self._now = now
        self._runs = [(run.lane, run.rest(now)) for run in runs]
        ends = sorted((run.rest(now), run.length(now)) for run in runs)
        overtaking = max(len(ends) - workers, 0)
        self._overtaking = _padded([end for end, _ in ends[:overtaking]], workers, 0.0)
        self._free = _padded(ends[overtaking:], workers, (0.0, 0.0))  # end of a run, and its length
        self._longest = _short_beside(min(length for _, length in self._free))
        self._first_end = self._free[0][0]
        self._lanes: dict[Lane, list[float]] = {}  # of lanes with an instance limit
        self._begins: dict[str, float] = {}  # of the latest member of each flow that got a worker
        self._no_overtaking_before = 0.0

    def at_once(self, lane: Lane) -> int:
        """Return the maximum concurrent runs of a lane."""
        return min(self._workers, lane.instances or self._workers)

    def next_begin(self, ticket: Ticket) -> float:
        """Return the seconds until the next member can start."""
        begin = self._free[0][0]
        if begin > _patience(ticket, self._now):
            begin = min(begin, self._next_overtaking(ticket))
        own = self._own(ticket.lane)
        return max(begin, own[0]) if own else begin

    def run(self, ticket: Ticket) -> None:
        """Assign a member to a worker at its `next_begin`."""
        begin, flow = self.next_begin(ticket), ticket.share.flow
        end = begin + ticket.cost
        if begin < self._free[0][0]:
            heapq.heapreplace(self._overtaking, end)
        else:
            heapq.heapreplace(self._free, (end, ticket.cost))
            # One member of each flow may be overtaken; then it is that flow's turn.
            before = self._begins.get(flow, 0.0)
            self._no_overtaking_before = max(self._no_overtaking_before, before)
            self._begins[flow] = begin
        if own := self._own(ticket.lane):
            heapq.heapreplace(own, end)

    def _next_overtaking(self, ticket: Ticket) -> float:
        """Return the seconds until a member can start beside long runs; infinite if it cannot."""
        begin = max(self._overtaking[0], self._no_overtaking_before)
        if begin < self._first_end and 0 < ticket.alone <= self._longest:
            return begin
        longest = _short_beside(min(length for _, length in self._free))
        return max(begin, self._first_end) if 0 < ticket.alone <= longest else math.inf

    def _own(self, lane: Lane) -> list[float]:
        """Return the free times of the lane's instances; empty if it has no limit."""
        if lane.instances is None:
            return []
        if lane not in self._lanes:
            rests = [rest for run, rest in self._runs if run is lane]
            self._lanes[lane] = _padded(rests, lane.instances, 0.0)
        return self._lanes[lane]


def needed_seconds(tickets: Sequence[Ticket], workers: int, now: float) -> float:
    """Return the 95th percentile of the duration of a request on an idle server, s."""
    lane, rows = tickets[0].lane, tickets[0].rows
    effort = max(ticket.effort for ticket in tickets)
    per_run = _rows_of_a_run(tickets)
    runs = math.ceil(len(tickets) * rows / per_run)
    rounds_before = (runs - 1) // min(workers, lane.instances or workers)
    before = rounds_before * lane.estimates.mean(per_run, now, effort) if rounds_before else 0.0
    return before + lane.estimates.p95(per_run, now, effort)


def request_seconds(
    tickets: Sequence[Ticket], begins: Sequence[float], needed: float, at_once: int, now: float
) -> float:
    """Return the expected seconds until a request is answered.

    Args:
        tickets: the members of the request.
        begins: seconds until the start of each, ascending.
        needed: result of `needed_seconds`.
        at_once: concurrent runs of its lane.
        now: current time, s.
    """
    last, per_run = tickets[-1], _rows_of_a_run(tickets)
    # The last member of a batch starts with the batch, not after its other members.
    company = (per_run - last.rows) / last.rows * last.cost / at_once
    effort = max(ticket.effort for ticket in tickets)
    run = last.lane.estimates.p95(per_run, now, effort)
    return max(begins[0] + needed, begins[-1] - company + run)


def _rows_of_a_run(tickets: Sequence[Ticket]) -> int:
    rows = tickets[0].rows
    return max(min(len(tickets) * rows, tickets[0].lane.max_rows), rows)


def _patience(ticket: Ticket, now: float) -> float:
    """Return the seconds that a member waits before it overtakes: half of its slack."""
    return (ticket.deadline - now - ticket.alone) / 2


def _short_beside(length: float) -> float:
    """Return the longest duration that is short compared to `length`, s."""
    return length / _LONG_FACTOR if length >= _MIN_LONG_SECONDS else 0.0


def _padded(busy: list[T], workers: int, free: T) -> list[T]:
    """Return a heap of the free times of the workers; the others are free now."""
    heap = (busy + [free] * workers)[: max(workers, len(busy))]
    heapq.heapify(heap)
    return heap
