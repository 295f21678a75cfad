"""Which pictures get a place on a model, when and with whom, and which are refused at once.

Pure: the time comes in as an argument, work is opaque. Callers get their turns as `fair_queue`
says. A request is admitted only if it is expected to be answered in time in that order, and if
nobody of the same caller who was admitted before becomes late by it. Those of other callers may
become late by it, since a caller that has had less goes first: they lose their places at once and
are told so. What can no longer be in time gives up its place before it costs anything.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from inference_service.serving.fair_queue import FairQueue
from inference_service.serving.places import Places
from inference_service.serving.schedule import (
    ActiveRun,
    Passing,
    Slots,
    needed_seconds,
    request_seconds,
)
from inference_service.serving.tickets import Lane, Share, Ticket
from servicekit.errors import SightlineError

__all__ = ["REASONS", "Admission", "Dispatch", "Lane", "Share", "Ticket", "displaced"]

REASONS = frozenset({"DEADLINE_TOO_SHORT", "QUEUE_FULL", "QUEUE_TOO_SLOW"})
"""Why `Admission.offer` refuses, and why members lose their places."""
_LEAST_RETRY_SECONDS = 0.05
_OVERDUE_TIMES, _OVERDUE_SECONDS = 2.0, 0.05  # of a run that is not what it was expected to be
_ROUNDING = 1e-6  # s, of sums of times; who is promised an answer must not lose it to one


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What a free worker is to do."""

    batch: tuple[Ticket, ...] = ()
    """To be run together; empty: nothing for now."""
    late: tuple[Ticket, ...] = ()
    """Cannot be in time any more; they are out of the queue."""
    wake_at: float | None = None
    """With an empty batch: when to ask again, even if nothing happens before; None: no need."""


@dataclass(slots=True)
class Admission:
    """The queue before the workers."""

    workers: int
    """Runs at a time over all models, >= 1; beside a long one a short one may begin as well."""
    queue_size: int
    """Rows that wait at most, >= 1."""
    _queue: FairQueue = field(default_factory=FairQueue)
    _under_way: dict[Ticket, ActiveRun] = field(default_factory=dict)  # by their first member
    _runs: Counter[Lane] = field(default_factory=Counter)

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    @property
    def running(self) -> int:
        """Runs that are under way: up to `workers`, and one short one beside each long one."""
        return len(self._under_way)

    def offer(self, tickets: Sequence[Ticket], now: float) -> tuple[Ticket, ...]:
        """Put a request's members into the queue, all or none.

        Args:
            tickets: at least one, all with one deadline, lane, share and number of rows.
            now: seconds on any clock that does not go back.

        Returns:
            Members of other callers that have lost their places by it; see `displaced`.

        Raises:
            SightlineError: DEADLINE_EXCEEDED: it is over. RESOURCE_EXHAUSTED with the seconds after
                which it may pass: `DEADLINE_TOO_SHORT`: even an idle server is expected to be late;
                `QUEUE_FULL`; `QUEUE_TOO_SLOW`: it or somebody of the same caller who waits would
                be late.
        """
        gone = self.check(tickets, now)
        lost = tuple(ticket for ticket in gone if self._queue.remove(ticket))
        self._queue.put(tickets)
        return lost

    def check(self, tickets: Sequence[Ticket], now: float) -> set[Ticket]:
        """Return those that would lose their places by a request; see `offer` for the rest.

        It changes nothing of the queue, so that a request can be refused before its pictures are
        looked at.
        """
        first = tickets[0]
        left = first.deadline - now
        if left <= 0:
            raise _passed(left)
        self._expect_more(now)
        self._queue.ahead = self._ahead(now)
        needed = needed_seconds(tickets, self.workers, now)
        tried = left <= needed  # what is known may be wrong, or old
        if tried and not self._is_idle(first.lane):
            raise _too_short(left, needed, self.drained(now))
        _prepare(tickets, now, tried=tried)
        try:
            gone = self._free_places(tickets, now)
            gone |= self._plan(tickets, gone, needed, now) if not tried else set()
        except SightlineError:
            self._queue.remember(first)
            raise
        return gone

    def take(self, now: float) -> Dispatch:
        """Take what a free worker should run next out of the queue.

        Returns:
            A batch, if a worker is free and something is to run now; and what was found to be late.
        """
        if self.running >= self.workers:
            return self._take_passing(now)
        if (only := self._next_single(now)) is not None:
            self._start([only], now)
            return Dispatch((only,))
        late: list[Ticket] = []
        batch: list[Ticket] = []
        seen: set[Lane] = set()
        wake_at: float | None = None
        for _, ticket in self._queue.order():
            lane = ticket.lane
            if lane in seen:
                continue
            if _is_late(ticket, now):
                late.append(ticket)
                continue
            seen.add(lane)
            if self._is_full(lane):
                continue
            batch, ready_at = self._gather(ticket, now)
            if ready_at <= now:
                break
            batch, wake_at = [], ready_at if wake_at is None else min(wake_at, ready_at)
        self._remove(late)
        if batch:
            self._start(batch, now)
            wake_at = None
        return Dispatch(tuple(batch), tuple(late), wake_at)

    def done(self, batch: Sequence[Ticket], seconds: float | None = None) -> None:
        """Free the worker of a batch that `take` gave.

        Args:
            batch: as it was given.
            seconds: that it took of the worker; callers are charged with it. None: not known.
        """
        del self._under_way[batch[0]]
        lane = batch[0].lane
        self._runs[lane] -= 1
        if not self._runs[lane]:
            del self._runs[lane]  # or models that are gone would be kept
        if seconds is not None:
            self._charge(batch, seconds)

    def drained(self, now: float) -> float:
        """Return the expected seconds until all that runs and waits is done."""
        return (self._rest(now) + sum(ticket.cost for ticket in self._queue)) / self.workers

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a member that nobody waits for out of the queue; False: it is not in it."""
        return self._queue.remove(ticket)

    def _next_single(self, now: float) -> Ticket | None:
        """Return what `take` would, where that is simple: the first one, to be run singly."""
        first = self._queue.next()
        if first is None or first.rows < first.lane.max_rows or _is_late(first, now):
            return None
        return None if self._is_full(first.lane) else first

    def _take_passing(self, now: float) -> Dispatch:
        """Take a short run that begins beside long ones, although every worker is busy.

        In the order of turns, one member of each flow may be passed, which it is as if it had
        begun: so nobody gets more than its share by passing.
        """
        if self.running >= 2 * self.workers or not self._queue:
            return Dispatch()
        self._expect_more(now)
        passing = Passing(self._under_way.values(), now)
        if not passing.longest:
            return Dispatch()
        late: list[Ticket] = []
        wake_at: float | None = None
        passed: set[str] = set()
        for _, ticket in self._queue.order():
            if _is_late(ticket, now):
                late.append(ticket)
                continue
            if ticket.share.flow in passed:
                break
            passed.add(ticket.share.flow)
            if not passing.is_short(ticket) or self._is_full(ticket.lane):
                continue
            if passing.must_pass(ticket):
                self._remove(late)
                self._start([ticket], now)
                return Dispatch((ticket,), tuple(late))
            look_at = passing.look_again_at(ticket)
            wake_at = look_at if wake_at is None else min(wake_at, look_at)
        self._remove(late)
        return Dispatch(late=tuple(late), wake_at=wake_at)

    def _remove(self, late: Sequence[Ticket]) -> None:
        for ticket in late:
            self._queue.remove(ticket)

    def _is_full(self, lane: Lane) -> bool:
        """Return whether a lane has no instance left for another run."""
        return lane.instances is not None and self._runs[lane] >= lane.instances

    def _rest(self, now: float) -> float:
        """Return the seconds that all that runs is expected to take yet."""
        return sum(run.rest(now) for run in self._under_way.values())

    def _ahead(self, now: float) -> float:
        """Return the most that a caller is charged for runs that are not over, by its weight."""
        ahead: defaultdict[str, float] = defaultdict(float)
        for run in self._under_way.values():
            share = run.batch[0].share  # of a batch, all counts as its first member's
            ahead[share.flow] += run.rest(now) / share.weight
        return max(ahead.values(), default=0.0)

    def _is_idle(self, lane: Lane) -> bool:
        """Return whether a run costs nobody anything and renews what is known of the lane."""
        free = self.running < self.workers and not self._runs[lane]
        return free and all(ticket.lane is not lane for ticket in self._queue)

    def _slots(self, now: float) -> Slots:
        return Slots(self.workers, self._under_way.values(), now)

    def _free_places(self, tickets: Sequence[Ticket], now: float) -> set[Ticket]:
        """Return those that must give up their places for a request's rows to find some.

        These are whole requests, none of them begun, whose turn comes later, or of flows that hold
        more places. If they are too few, a flow that holds none and has had no more than its share
        gets a small request's places all the same, up to twice the size of the queue: what has
        begun is not given up, since work would be lost.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `QUEUE_FULL`.
        """
        depth, rows = self.depth, len(tickets) * tickets[0].rows
        gone: set[Ticket] = set()
        lacking = depth + rows - self.queue_size
        if lacking <= 0:
            return gone
        if self._queue.may_gain(tickets):
            places = Places(self._queue.order(tickets), tickets)
            for members in places.latest_first():
                if places.may_replace(members):
                    gone.update(members)
                    lacking -= places.give_up(members)
                if lacking <= 0:
                    return gone
        share = max(self.queue_size // (self._queue.flows + 1), 1)
        small = depth and rows <= share and depth + rows <= 2 * self.queue_size
        if small and self._queue.is_modest(tickets[0]):
            return set()
        raise _overload("QUEUE_FULL", f"{depth} pictures are waiting", self.drained(now))

    def _plan(
        self, tickets: Sequence[Ticket], gone: set[Ticket], needed: float, now: float
    ) -> set[Ticket]:
        """Return those of other flows that become late by a request, and give up their places.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `QUEUE_TOO_SLOW`.
        """
        late: set[Ticket] = set()
        if not gone and self._has_plenty(tickets, needed, now):
            return late  # as is usual: to plan it all costs more than all else
        # Those who follow one that goes get its turn, which may make others late in their turn.
        while more := self._late_by(tickets, gone | late, needed, now):
            late |= more
        return late

    def _has_plenty(self, tickets: Sequence[Ticket], needed: float, now: float) -> bool:
        """Return whether a request and all that wait are in time in whatever order."""
        rest = self._rest(now)
        work = sum(ticket.cost for ticket in tickets)
        slack = self._queue.slack(now, rest + work)
        return slack >= 0 and tickets[0].deadline - now - needed > rest + self._queue.backlog

    def _late_by(
        self, tickets: Sequence[Ticket], gone: set[Ticket], needed: float, now: float
    ) -> set[Ticket]:
        """Return the members of other flows that become late by a request; see `_plan`."""
        slots, lane, late = self._slots(now), tickets[0].lane, set[Ticket]()
        begins: list[float] = []
        shift, own = 0.0, tickets[0].share
        # While its flow waits for one turn more, each of the others may have one, and its share.
        spread = self._queue.flows + max(self._queue.weights / own.weight, 1.0)
        for _, ticket in self._queue.order(tickets, gone):
            if ticket in late or _is_late(ticket, now):
                continue
            begin = slots.next_begin(ticket)
            slack = ticket.deadline - now - begin - ticket.alone
            if ticket.request is tickets:
                begins.append(begin)
                shift += ticket.cost / slots.at_once(lane)
                if len(begins) == len(tickets):
                    _require_in_time(tickets, begins, needed, slots.at_once(lane), now)
            elif slack < 0 < shift:
                if ticket.share.flow != own.flow:
                    if slack + shift >= 0:  # it was in time until now
                        late.update(member for member in ticket.request if not member.begun)
                        continue
                # Who is expected to be late by less than a run of its own may still be in time.
                elif slack + shift * spread >= -ticket.alone:
                    raise _overload("QUEUE_TOO_SLOW", "others that wait would become late", -slack)
            slots.run(ticket)
        return late

    def _gather(self, head: Ticket, now: float) -> tuple[list[Ticket], float]:
        """Return the batch that begins with a member, and from when on it is to run."""
        lane, rows, batch, full = head.lane, head.rows, [head], False
        if rows >= lane.max_rows:
            return batch, now
        due, effort = head.deadline, head.effort
        for _, ticket in self._queue.order():
            if ticket is head or ticket.lane is not lane or _is_late(ticket, now):
                continue
            due, effort = min(due, ticket.deadline), max(effort, ticket.effort)
            # More company must not make anybody late.
            in_time = now + lane.estimates.p95(rows + ticket.rows, now, effort) < due
            if rows + ticket.rows > lane.max_rows or not in_time:
                full = True
                break
            batch.append(ticket)
            rows += ticket.rows
        if full or rows >= lane.max_rows:
            return batch, now
        oldest = min(ticket.arrived for ticket in batch)
        latest = due - lane.estimates.p95(lane.max_rows, now, effort)
        return batch, min(oldest + lane.max_wait, latest)

    def _start(self, batch: Sequence[Ticket], now: float) -> None:
        lane = batch[0].lane
        rows, effort = sum(ticket.rows for ticket in batch), max(t.effort for t in batch)
        for ticket in batch:
            ticket.begun = True
        self._queue.begin(batch)
        self._runs[lane] += 1
        seconds = lane.estimates.mean(rows, now, effort)
        self._under_way[batch[0]] = ActiveRun(lane, now, seconds, batch)
        if seconds:  # it may be known better than when they came
            self._charge(batch, seconds)

    def _charge(self, batch: Sequence[Ticket], seconds: float) -> None:
        """Charge callers with what their run takes, in place of what it was expected to take."""
        rows = sum(ticket.rows for ticket in batch)
        for ticket in batch:
            own = seconds * ticket.rows / rows
            self._queue.correct(ticket, own)
            ticket.cost = own

    def _expect_more(self, now: float) -> None:
        """Expect more of runs that have taken twice as long as expected, and charge for it.

        What is known may be wrong: while such a run goes on, it is its caller's all the same.
        """
        for run in self._under_way.values():
            elapsed = now - run.begun
            if elapsed >= max(_OVERDUE_TIMES * run.seconds, _OVERDUE_SECONDS):
                run.seconds = _OVERDUE_TIMES * elapsed
                self._charge(run.batch, run.seconds)


def displaced(retry_after: float) -> SightlineError:
    """Return the error for members that have lost their places before their deadline."""
    why = "others came first, and too little of the deadline is left"
    return _overload("QUEUE_TOO_SLOW", why, retry_after)


def _overload(reason: str, why: str, retry_after: float) -> SightlineError:
    """Return the error for what the server has no time or no place for."""
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        f"overloaded: {why}",
        retry_after=max(retry_after, _LEAST_RETRY_SECONDS),
    )


def _prepare(tickets: Sequence[Ticket], now: float, *, tried: bool) -> None:
    """Note what is expected of a request's members."""
    first = tickets[0]
    estimates, full = first.lane.estimates, max(first.lane.max_rows, first.rows)
    share = estimates.mean(full, now) * first.rows / full
    for ticket in tickets:
        ticket.request, ticket.arrived = tickets, now
        decoding = estimates.decoding(ticket.effort, now)
        ticket.cost = share + decoding
        ticket.alone = 0.0 if tried else estimates.mean(ticket.rows, now) + decoding


def _require_in_time(
    tickets: Sequence[Ticket], begins: Sequence[float], needed: float, at_once: int, now: float
) -> None:
    """Raise SightlineError `QUEUE_TOO_SLOW` if a request that must wait would be late."""
    left = tickets[0].deadline - now
    seconds = request_seconds(tickets, begins, needed, at_once, now)
    if begins[-1] and left <= seconds:
        why = f"the queue of {begins[0]:.3f} s leaves too little of the {left:.3f} s deadline"
        raise _overload("QUEUE_TOO_SLOW", why, seconds - left)


def _is_late(ticket: Ticket, now: float) -> bool:
    left = ticket.deadline - now
    return left <= 0 or left + _ROUNDING < ticket.alone


def _passed(left: float) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        f"the deadline passed {-left:.3f} s before the call was admitted",
    )


def _too_short(left: float, needed: float, drained: float) -> SightlineError:
    """Return the error for a deadline that leaves less than the model is known to take.

    What is known may be wrong: once the lane is idle, it is tried.
    """
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "DEADLINE_TOO_SHORT",
        f"the deadline leaves {left:.3f} s, the model needs about {needed:.3f} s",
        retry_after=max(drained, needed - left, _LEAST_RETRY_SECONDS),
    )
