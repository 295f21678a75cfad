"""When what waits is expected to be run. Pure."""

import heapq
import math
from collections.abc import Sequence

from inference_service.serving.tickets import Lane, Ticket


class Slots:
    """The workers, as they become free one after the other.

    Args:
        workers: runs at a time, >= 1.
        runs: lane of each run that is under way, and the seconds that it is expected to take yet.
    """

    def __init__(self, workers: int, runs: Sequence[tuple[Lane, float]]) -> None:
        self._workers = workers
        self._runs = [(lane, max(rest, 0.0)) for lane, rest in runs]
        self._free = _padded([rest for _, rest in self._runs], workers)
        self._lanes: dict[Lane, list[float]] = {}  # of those that may not have every worker

    def at_once(self, lane: Lane) -> int:
        """Return how many runs of a lane there may be at a time."""
        return min(self._workers, lane.instances or self._workers)

    def next_begin(self, lane: Lane) -> float:
        """Return the seconds until the next run of a lane can begin."""
        if lane.instances is None:
            return self._free[0]
        own = self._own(lane)
        return max(self._free[0], own[0]) if own else self._free[0]

    def run(self, lane: Lane, seconds: float) -> None:
        """Give the next worker a run of so many seconds."""
        end = self.next_begin(lane) + seconds
        heapq.heapreplace(self._free, end)
        if lane.instances is not None and (own := self._own(lane)):
            heapq.heapreplace(own, end)

    def _own(self, lane: Lane) -> list[float]:
        """Return when the lane's own instances are free; empty: it may have every worker."""
        count = self.at_once(lane)
        if count == self._workers:
            return []
        if lane not in self._lanes:
            rests = [rest for run, rest in self._runs if run is lane]
            self._lanes[lane] = _padded(rests, count)
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


def _padded(rests: list[float], count: int) -> list[float]:
    """Return a heap of when so many workers are free; those that are not known are free now."""
    heap = (rests + [0.0] * count)[: max(count, len(rests))]
    heapq.heapify(heap)
    return heap
