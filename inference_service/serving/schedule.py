"""When what waits is expected to be run. Pure."""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from inference_service.serving.tickets import Lane, Ticket

T = TypeVar("T", float, tuple[float, float])


_TIMES_LONGER, _LEAST_LONG_SECONDS = 4.0, 0.05  # of a run that is long beside a short one
_LEAST_PATIENCE = 0.01  # s, between two looks at a member that may have to pass


@dataclass(slots=True)
class ActiveRun:
    """A run that is under way."""

    lane: Lane
    begun: float
    """Seconds on the clock of `now`."""
    seconds: float
    """That it is expected to take."""
    batch: Sequence[Ticket]
    """Its members."""

    def rest(self, now: float) -> float:
        """Return the seconds that it is expected to take yet."""
        return max(self.begun + self.seconds - now, 0.0)

    def length(self, now: float) -> float:
        """Return the seconds that it takes in all, as far as is known."""
        return max(self.seconds, now - self.begun)

    def busy(self, now: float) -> float:
        """Return the seconds for which its worker cannot be relied upon.

        A run that is overdue may be overdue for as long again.
        """
        return abs(self.begun + self.seconds - now)


class Passing:
    """Decides which short runs may begin beside long ones, though every worker is busy.

    A run cannot be interrupted, but a long one can share its processor with a short one. So beside
    each long run one short run at a time may begin, if it would be late otherwise.

    Args:
        runs: that are under way, at least one.
        now: seconds on any clock that does not go back.
    """

    def __init__(self, runs: Collection[ActiveRun], now: float) -> None:
        lengths = sorted(run.length(now) for run in runs)
        # More than half of the runs are long ones.
        self.longest = _short_beside(lengths[(len(lengths) - 1) // 2])
        """Seconds of the longest run that may pass; 0: there is none."""
        self._busy = min(run.busy(now) for run in runs)
        self._now = now

    def is_short(self, ticket: Ticket) -> bool:
        """Return whether a member may pass, if it cannot wait."""
        return 0 < ticket.alone <= self.longest

    def must_pass(self, ticket: Ticket) -> bool:
        """Return whether a member would wait for most of its time."""
        return self._busy > _patience(ticket, self._now)

    def look_again_at(self, ticket: Ticket) -> float:
        """Return when a member that can wait has waited for long."""
        return self._now + max(_patience(ticket, self._now), _LEAST_PATIENCE)


class Slots:
    """The workers, as they become free one after the other. All times are seconds from now.

    Args:
        workers: runs at a time, >= 1, without those that pass.
        runs: that are under way.
        now: seconds on any clock that does not go back.
    """

    def __init__(self, workers: int, runs: Collection[ActiveRun], now: float) -> None:
        self._workers = workers
        self._now = now
        self._runs = [(run.lane, run.rest(now)) for run in runs]
        ends = sorted((run.rest(now), run.length(now)) for run in runs)
        passing = max(len(ends) - workers, 0)
        self._passing = _padded([end for end, _ in ends[:passing]], workers, 0.0)
        self._free = _padded(ends[passing:], workers, (0.0, 0.0))  # end of a run, and its length
        self._longest = _short_beside(min(length for _, length in self._free))
        self._first_end = self._free[0][0]
        self._lanes: dict[Lane, list[float]] = {}  # of those that may not have every worker
        self._begins: dict[str, float] = {}  # of each flow's latest member that took a worker
        self._none_pass_before = 0.0

    def at_once(self, lane: Lane) -> int:
        """Return how many runs of a lane there may be at a time."""
        return min(self._workers, lane.instances or self._workers)

    def next_begin(self, ticket: Ticket) -> float:
        """Return the seconds until a member can begin that is the next one."""
        begin = self._free[0][0]
        if begin > _patience(ticket, self._now):
            begin = min(begin, self._next_passing(ticket))
        own = self._own(ticket.lane)
        return max(begin, own[0]) if own else begin

    def run(self, ticket: Ticket) -> None:
        """Have a member run, when `next_begin` says."""
        begin, flow = self.next_begin(ticket), ticket.share.flow
        end = begin + ticket.cost
        if begin < self._free[0][0]:
            heapq.heapreplace(self._passing, end)
        else:
            heapq.heapreplace(self._free, (end, ticket.cost))
            # Of each flow, one member is passed: then it is that flow's turn.
            before = self._begins.get(flow, 0.0)
            self._none_pass_before = max(self._none_pass_before, before)
            self._begins[flow] = begin
        if own := self._own(ticket.lane):
            heapq.heapreplace(own, end)

    def _next_passing(self, ticket: Ticket) -> float:
        """Return the seconds until a member can begin beside long runs; infinite: it cannot."""
        begin = max(self._passing[0], self._none_pass_before)
        if begin < self._first_end and 0 < ticket.alone <= self._longest:
            return begin
        longest = _short_beside(min(length for _, length in self._free))
        return max(begin, self._first_end) if 0 < ticket.alone <= longest else math.inf

    def _own(self, lane: Lane) -> list[float]:
        """Return when the lane's own instances are free; empty: it may have every worker."""
        if lane.instances is None:
            return []
        if lane not in self._lanes:
            rests = [rest for run, rest in self._runs if run is lane]
            self._lanes[lane] = _padded(rests, lane.instances, 0.0)
        return self._lanes[lane]


def needed_seconds(tickets: Sequence[Ticket], workers: int, now: float) -> float:
    """Return the seconds in which an idle server is through with a request, 19 times of 20."""
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
        tickets: the request's members.
        begins: seconds until each is run, ascending.
        needed: as `needed_seconds` says.
        at_once: runs of its lane at a time.
        now: as everywhere.
    """
    last, per_run = tickets[-1], _rows_of_a_run(tickets)
    # The last member of a batch begins with the batch, and not after the others of it.
    company = (per_run - last.rows) / last.rows * last.cost / at_once
    effort = max(ticket.effort for ticket in tickets)
    run = last.lane.estimates.p95(per_run, now, effort)
    return max(begins[0] + needed, begins[-1] - company + run)


def _rows_of_a_run(tickets: Sequence[Ticket]) -> int:
    rows = tickets[0].rows
    return max(min(len(tickets) * rows, tickets[0].lane.max_rows), rows)


def _patience(ticket: Ticket, now: float) -> float:
    """Return the seconds that a member waits before it passes: half of what it can spare."""
    return (ticket.deadline - now - ticket.alone) / 2


def _short_beside(length: float) -> float:
    """Return the seconds of the longest run that is short beside one of this length."""
    return length / _TIMES_LONGER if length >= _LEAST_LONG_SECONDS else 0.0


def _padded(busy: list[T], workers: int, free: T) -> list[T]:
    """Return a heap of when so many workers are free; those that are not known are free now."""
    heap = (busy + [free] * workers)[: max(workers, len(busy))]
    heapq.heapify(heap)
    return heap
