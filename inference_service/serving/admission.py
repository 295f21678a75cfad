"""Which pictures get a place on a model, when and with whom, and which are refused at once.

Pure: the time comes in as an argument, work is opaque. A request is admitted only if it is expected
to be answered in time and nobody who was admitted before becomes late by it. What waits is taken
by its deadline, the earliest first; what can no longer be in time gives up its place before it
costs anything.
"""

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from inference_service.serving.estimates import Estimates
from servicekit.errors import SightlineError

REASONS = frozenset({"DEADLINE_TOO_SHORT", "QUEUE_FULL", "QUEUE_TOO_SLOW"})
"""Why `Admission.offer` refuses."""
_LEAST_RETRY_SECONDS = 0.05
_ROUNDING = 1e-6  # s, of sums of times; who is promised an answer must not lose it to one


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """How one loaded model is run."""

    max_rows: int = 1
    """Rows of one run at most, >= 1; 1: members are run singly."""
    max_wait: float = 0.0
    """Seconds that a batch that is not full waits for more, >= 0."""
    instances: int | None = None
    """Runs at a time at most, >= 1; None: as many as there are workers."""
    estimates: Estimates = field(default_factory=Estimates)


@dataclass(slots=True, eq=False)
class Ticket:
    """One member's place, first in the queue and then in a run."""

    deadline: float
    """When the answer must be out, on the clock of `now`."""
    lane: Lane
    rows: int = 1
    """Of its input, >= 1."""
    arrived: float = 0.0
    """When it was admitted."""
    cost: float = 0.0
    """Seconds of a worker that it is expected to take, its share of a full batch; 0: not known."""
    alone: float = 0.0
    """Seconds that a run of it alone is expected to take; 0: not known."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a free worker is to do."""

    batch: tuple[Ticket, ...] = ()
    """To be run together, the earliest deadline first; empty: nothing for now."""
    late: tuple[Ticket, ...] = ()
    """Cannot be in time any more; they are out of the queue."""
    wake_at: float | None = None
    """With an empty batch: when to ask again, even if nothing happens before; None: no need."""


@dataclass(slots=True)
class Admission:
    """The queue before the workers."""

    workers: int
    """Runs at a time over all models, >= 1."""
    queue_size: int
    """Rows that wait at most, >= 1."""
    _waiting: list[Ticket] = field(default_factory=list)  # by deadline
    _ends: dict[Ticket, float] = field(default_factory=dict)  # of runs, by their first member
    _runs: Counter[Lane] = field(default_factory=Counter)

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return sum(ticket.rows for ticket in self._waiting)

    @property
    def running(self) -> int:
        """Runs that are under way."""
        return len(self._ends)

    def offer(self, tickets: Sequence[Ticket], now: float) -> None:
        """Puts a request's members into the queue, all or none.

        Args:
            tickets: at least one, all with one deadline, lane and number of rows.
            now: seconds on any clock that does not go back.

        Raises:
            SightlineError: DEADLINE_EXCEEDED, `DEADLINE_TOO_SHORT`: even an idle server would be
                late; RESOURCE_EXHAUSTED with the seconds after which it may pass: `QUEUE_FULL`,
                or `QUEUE_TOO_SLOW`: it or somebody who waits would be late.
        """
        first = tickets[0]
        left = first.deadline - now
        needed = self._needed(tickets, now)
        if left <= 0 or (left <= needed and not self._may_probe(first.lane, now)):
            raise _too_short(left, needed)
        waiting = self.depth
        if waiting + len(tickets) * first.rows > self.queue_size:
            why = f"{waiting} pictures are waiting"
            raise _overload("QUEUE_FULL", why, self._wait(first.lane, len(self._waiting), now))
        cost = _cost(first, now)
        behind = bisect.bisect_right(self._waiting, first.deadline, key=_deadline)
        wait = self._wait(first.lane, behind, now)
        if wait and left <= wait + needed:
            why = f"the queue of {wait:.3f} s leaves too little of the {left:.3f} s deadline"
            raise _overload("QUEUE_TOO_SLOW", why, wait + needed - left)
        lateness = self._lateness(behind, wait, cost * len(tickets), now)
        if lateness:
            raise _overload("QUEUE_TOO_SLOW", "others that wait would become late", lateness)
        alone = first.lane.estimates.mean(first.rows, now)
        for ticket in tickets:
            ticket.arrived, ticket.cost, ticket.alone = now, cost, alone
        self._waiting[behind:behind] = tickets

    def take(self, now: float) -> Taken:
        """Takes what a free worker should run next out of the queue.

        Returns:
            A batch, if a worker is free and something is to run now; and what was found to be late.
        """
        if self.running >= self.workers:
            return Taken()
        late: list[Ticket] = []
        batch: list[Ticket] = []
        seen: set[Lane] = set()
        wake_at: float | None = None
        for ticket in self._waiting:
            lane = ticket.lane
            if lane in seen:
                continue
            if _is_late(ticket, now):
                late.append(ticket)
                continue
            seen.add(lane)
            if lane.instances is not None and self._runs[lane] >= lane.instances:
                continue
            batch, ready_at = self._gather(ticket, now)
            if ready_at <= now:
                break
            batch, wake_at = [], ready_at if wake_at is None else min(wake_at, ready_at)
        for ticket in (*late, *batch):
            self.withdraw(ticket)
        if batch:
            self._start(batch, now)
            wake_at = None
        return Taken(tuple(batch), tuple(late), wake_at)

    def done(self, batch: Sequence[Ticket]) -> None:
        """Frees the worker of a batch that `take` gave."""
        del self._ends[batch[0]]
        lane = batch[0].lane
        self._runs[lane] -= 1
        if not self._runs[lane]:
            del self._runs[lane]  # or models that are gone would be kept

    def withdraw(self, ticket: Ticket) -> bool:
        """Takes a member that nobody waits for out of the queue; False: it is not in it."""
        at = bisect.bisect_left(self._waiting, ticket.deadline, key=_deadline)
        while at < len(self._waiting) and self._waiting[at].deadline == ticket.deadline:
            if self._waiting[at] is ticket:
                del self._waiting[at]
                return True
            at += 1
        return False

    def _needed(self, tickets: Sequence[Ticket], now: float) -> float:
        """Returns the seconds in which an idle server is through with them, 19 times of 20."""
        lane, rows = tickets[0].lane, tickets[0].rows
        per_run = max(min(len(tickets) * rows, lane.max_rows), rows)
        runs = math.ceil(len(tickets) * rows / per_run)
        rounds_before = (runs - 1) // self._at_once(lane)
        before = rounds_before * lane.estimates.mean(per_run, now) if rounds_before else 0.0
        return before + lane.estimates.p95(per_run, now)

    def _may_probe(self, lane: Lane, now: float) -> bool:
        """Whether a run costs nobody anything and renews what is known of the lane."""
        return not self._waiting and not self._ends and not lane.estimates.fresh(now)

    def _wait(self, lane: Lane, ahead: int, now: float) -> float:
        """Returns the expected seconds until a newcomer behind so many is run; 0: at once."""
        before = [ticket.cost for ticket in self._waiting[:ahead] if not _is_late(ticket, now)]
        if len(before) + self.running < self._at_once(lane):
            return 0.0
        rest = sum(max(end - now, 0.0) for end in self._ends.values())
        return (rest + sum(before)) / self._at_once(lane)

    def _lateness(self, behind: int, wait: float, work: float, now: float) -> float:
        """Returns by how much work at a place makes those behind it late, s.

        Who is expected to be late by less than a run of its own may still be in time.

        Args:
            behind: the place; these and what follows wait longer.
            wait: seconds until the place is run.
            work: seconds of a worker.
            now: as everywhere.
        """
        worst, before = 0.0, wait
        for ticket in self._waiting[behind:]:
            at_once = self._at_once(ticket.lane)
            slack = ticket.deadline - now - before - ticket.alone
            if -ticket.alone <= slack < work / at_once:
                worst = max(worst, work / at_once - slack)
            before += ticket.cost / at_once
        return worst

    def _at_once(self, lane: Lane) -> int:
        return min(self.workers, lane.instances or self.workers)

    def _gather(self, head: Ticket, now: float) -> tuple[list[Ticket], float]:
        """Returns the batch that begins with a member, and from when on it is to run."""
        lane, rows, batch, full = head.lane, head.rows, [head], False
        if rows >= lane.max_rows:
            return batch, now
        at = self._waiting.index(head) + 1
        for ticket in self._waiting[at:]:
            if ticket.lane is not lane or _is_late(ticket, now):
                continue
            # The head has the least time: more company must not make it late.
            in_time = now + lane.estimates.p95(rows + ticket.rows, now) < head.deadline
            if rows + ticket.rows > lane.max_rows or not in_time:
                full = True
                break
            batch.append(ticket)
            rows += ticket.rows
        if full or rows >= lane.max_rows:
            return batch, now
        oldest = min(ticket.arrived for ticket in batch)
        latest = head.deadline - lane.estimates.p95(lane.max_rows, now)
        return batch, min(oldest + lane.max_wait, latest)

    def _start(self, batch: Sequence[Ticket], now: float) -> None:
        lane = batch[0].lane
        rows = sum(ticket.rows for ticket in batch)
        self._runs[lane] += 1
        self._ends[batch[0]] = now + lane.estimates.mean(rows, now)


def _deadline(ticket: Ticket) -> float:
    return ticket.deadline


def _is_late(ticket: Ticket, now: float) -> bool:
    left = ticket.deadline - now
    return left <= 0 or left + _ROUNDING < ticket.alone


def _cost(ticket: Ticket, now: float) -> float:
    """Returns a member's share of the run of a batch that is as full as it gets, s."""
    full = max(ticket.lane.max_rows, ticket.rows)
    return ticket.lane.estimates.mean(full, now) * ticket.rows / full


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
