"""Admission control: which requests are queued, run in which batch, or refused immediately.

Pure: the time is an argument, work is opaque. Callers are served in the order of `fair_queue`. A
request is admitted only if it is expected to be answered in time in that order, and if it makes no
admitted request of the same caller late. Requests of other callers may become late, since a caller
that has had less goes first: these lose their places and fail immediately. A request that can no
longer be in time loses its place before it costs anything.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from inference_service.serving.fair_queue import FairQueue
from inference_service.serving.places import Places
from inference_service.serving.schedule import (
    ActiveRun,
    Overtaking,
    Slots,
    needed_seconds,
    request_seconds,
)
from inference_service.serving.tickets import Lane, Share, Ticket
from servicekit.errors import SightlineError

__all__ = ["REASONS", "Admission", "Dispatch", "Lane", "Share", "Ticket", "displaced"]

REASONS = frozenset({"DEADLINE_TOO_SHORT", "QUEUE_FULL", "QUEUE_TOO_SLOW"})
"""Reasons for which `Admission.offer` refuses requests and members lose their places."""
_MIN_RETRY_SECONDS = 0.05
_OVERDUE_FACTOR, _OVERDUE_SECONDS = 2.0, 0.05  # after which the estimate of a run is raised
_ROUNDING = 1e-6  # s, of sums of times, which must not cost an admitted request its place


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The next work for a free worker."""

    batch: tuple[Ticket, ...] = ()
    """Members to run in one batch; empty: nothing to run now."""
    late: tuple[Ticket, ...] = ()
    """Members that can no longer be in time; they have left the queue."""
    wake_at: float | None = None
    """With an empty batch: time of the next call if nothing happens before; None: no need."""


@dataclass(slots=True)
class Admission:
    """The queue in front of the workers."""

    workers: int
    """Maximum concurrent runs, >= 1, without short runs beside long ones."""
    queue_size: int
    """Maximum number of waiting rows, >= 1."""
    _queue: FairQueue = field(default_factory=FairQueue)
    _active: dict[Ticket, ActiveRun] = field(default_factory=dict)  # by first member
    _runs: Counter[Lane] = field(default_factory=Counter)

    @property
    def depth(self) -> int:
        """Number of waiting rows."""
        return self._queue.rows

    @property
    def running(self) -> int:
        """Number of runs in progress: up to `workers`, and a short one beside each long one."""
        return len(self._active)

    def offer(self, tickets: Sequence[Ticket], now: float) -> tuple[Ticket, ...]:
        """Queue the members of a request, all or none.

        Args:
            tickets: at least one, all with equal deadline, lane, share and number of rows.
            now: time on a monotonic clock, s.

        Returns:
            Members of other callers that have lost their places to it; see `displaced`.

        Raises:
            SightlineError: DEADLINE_EXCEEDED: the deadline has passed. RESOURCE_EXHAUSTED with the
                seconds until a retry: `DEADLINE_TOO_SHORT`: even an idle server would be late;
                `QUEUE_FULL`; `QUEUE_TOO_SLOW`: it, or a waiting request of the same caller, would
                be late.
        """
        gone = self.check(tickets, now)
        lost = tuple(ticket for ticket in gone if self._queue.remove(ticket))
        self._queue.put(tickets)
        return lost

    def check(self, tickets: Sequence[Ticket], now: float) -> set[Ticket]:
        """Return the members that would lose their places to a request; see `offer`.

        It does not change the queue, so that a request can be refused before its images are
        checked.
        """
        first = tickets[0]
        left = first.deadline - now
        if left <= 0:
            raise _passed(left)
        self._expect_more(now)
        self._queue.ahead = self._ahead(now)
        needed = needed_seconds(tickets, self.workers, now)
        probing = left <= needed  # the estimate may be wrong or outdated
        if probing and not self._is_idle(first.lane):
            raise _too_short(left, needed, self.drained(now))
        _prepare(tickets, now, probing=probing)
        try:
            gone = self._free_places(tickets, now)
            gone |= self._plan(tickets, gone, needed, now) if not probing else set()
        except SightlineError:
            self._queue.remember(first)
            raise
        return gone

    def take(self, now: float) -> Dispatch:
        """Remove from the queue what a free worker should run next.

        Returns:
            A batch, if a worker is free and there is work for it now; and members that are late.
        """
        if self.running >= self.workers:
            return self._dispatch_overtaking(now)
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
        """Release the worker of a batch.

        Args:
            batch: the batch.
            seconds: worker time that callers are charged for; None: not known.
        """
        del self._active[batch[0]]
        lane = batch[0].lane
        self._runs[lane] -= 1
        if not self._runs[lane]:
            del self._runs[lane]  # or unloaded models would stay in memory
        if seconds is not None:
            self._charge(batch, seconds)

    def drained(self, now: float) -> float:
        """Return the expected seconds until all running and waiting work is done."""
        return (self._rest(now) + sum(ticket.cost for ticket in self._queue)) / self.workers

    def withdraw(self, ticket: Ticket) -> bool:
        """Remove a member that no caller waits for; False if it is not in the queue."""
        return self._queue.remove(ticket)

    def _next_single(self, now: float) -> Ticket | None:
        """Return the first member if it runs alone: a shortcut for the common case."""
        first = self._queue.next()
        if first is None or first.rows < first.lane.max_rows or _is_late(first, now):
            return None
        return None if self._is_full(first.lane) else first

    def _dispatch_overtaking(self, now: float) -> Dispatch:
        """Return a short run that starts beside long ones, although every worker is busy.

        In the order of turns, one member of each flow may be overtaken, as if it had started: no
        caller gets more than its share by overtaking.
        """
        if self.running >= 2 * self.workers or not self._queue:
            return Dispatch()
        self._expect_more(now)
        overtaking = Overtaking(self._active.values(), now)
        if not overtaking.longest:
            return Dispatch()
        late: list[Ticket] = []
        wake_at: float | None = None
        overtaken: set[str] = set()
        for _, ticket in self._queue.order():
            if _is_late(ticket, now):
                late.append(ticket)
                continue
            if ticket.share.flow in overtaken:
                break
            overtaken.add(ticket.share.flow)
            if not overtaking.is_short(ticket) or self._is_full(ticket.lane):
                continue
            if overtaking.must_overtake(ticket):
                self._remove(late)
                self._start([ticket], now)
                return Dispatch((ticket,), tuple(late))
            check_at = overtaking.next_check(ticket)
            wake_at = check_at if wake_at is None else min(wake_at, check_at)
        self._remove(late)
        return Dispatch(late=tuple(late), wake_at=wake_at)

    def _remove(self, late: Sequence[Ticket]) -> None:
        for ticket in late:
            self._queue.remove(ticket)

    def _is_full(self, lane: Lane) -> bool:
        """Return True if a lane has no free instance."""
        return lane.instances is not None and self._runs[lane] >= lane.instances

    def _rest(self, now: float) -> float:
        """Return the expected remaining seconds of all runs."""
        return sum(run.rest(now) for run in self._active.values())

    def _ahead(self, now: float) -> float:
        """Return the highest charge of a caller for unfinished runs, divided by its weight."""
        ahead: defaultdict[str, float] = defaultdict(float)
        for run in self._active.values():
            share = run.batch[0].share  # a batch counts for its first member
            ahead[share.flow] += run.rest(now) / share.weight
        return max(ahead.values(), default=0.0)

    def _is_idle(self, lane: Lane) -> bool:
        """Return True if a run would delay no other request, so that it can renew the estimates."""
        free = self.running < self.workers and not self._runs[lane]
        return free and all(ticket.lane is not lane for ticket in self._queue)

    def _slots(self, now: float) -> Slots:
        return Slots(self.workers, self._active.values(), now)

    def _free_places(self, tickets: Sequence[Ticket], now: float) -> set[Ticket]:
        """Return the members that must give up their places to a request.

        These are whole requests that have not started, whose turn comes later or whose flow holds
        more places. If they are too few, a small request of a flow that holds no place and has had
        at most its share is queued nevertheless, up to twice the size of the queue: requests that
        have started do not give up their places, since work would be lost.

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
        raise _overload(
            "QUEUE_FULL",
            f"{depth} images are waiting, allowed are {self.queue_size}",
            self.drained(now),
        )

    def _plan(
        self, tickets: Sequence[Ticket], gone: set[Ticket], needed: float, now: float
    ) -> set[Ticket]:
        """Return the members of other flows that a request makes late; they lose their places.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `QUEUE_TOO_SLOW`.
        """
        late: set[Ticket] = set()
        if not gone and self._has_plenty(tickets, needed, now):
            return late  # the usual case: planning is the most expensive step
        # The followers of a removed member move up, which may make further members late.
        while more := self._late_by(tickets, gone | late, needed, now):
            late |= more
        return late

    def _has_plenty(self, tickets: Sequence[Ticket], needed: float, now: float) -> bool:
        """Return True if a request and all waiting members are in time in any order."""
        rest = self._rest(now)
        work = sum(ticket.cost for ticket in tickets)
        slack = self._queue.slack(now, rest + work)
        return slack >= 0 and tickets[0].deadline - now - needed > rest + self._queue.backlog

    def _late_by(
        self, tickets: Sequence[Ticket], gone: set[Ticket], needed: float, now: float
    ) -> set[Ticket]:
        """Return the members of other flows that a request makes late; see `_plan`."""
        slots, lane, late = self._slots(now), tickets[0].lane, set[Ticket]()
        begins: list[float] = []
        shift, own = 0.0, tickets[0].share
        # While its flow waits for one more turn, every other flow may get one, by its share.
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
                    if slack + shift >= 0:  # it was in time before
                        late.update(member for member in ticket.request if not member.begun)
                        continue
                # A member that is expected to be late by less than its own run may be in time.
                elif slack + shift * spread >= -ticket.alone:
                    raise _overload(
                        "QUEUE_TOO_SLOW", "the caller's other requests would become late", -slack
                    )
            slots.run(ticket)
        return late

    def _gather(self, head: Ticket, now: float) -> tuple[list[Ticket], float]:
        """Return the batch of a member, and the time at which it should start."""
        lane, rows, batch, full = head.lane, head.rows, [head], False
        if rows >= lane.max_rows:
            return batch, now
        due, effort = head.deadline, head.effort
        for _, ticket in self._queue.order():
            if ticket is head or ticket.lane is not lane or _is_late(ticket, now):
                continue
            due, effort = min(due, ticket.deadline), max(effort, ticket.effort)
            # A larger batch must not make any member late.
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
        self._active[batch[0]] = ActiveRun(lane, now, seconds, batch)
        if seconds:  # the estimate may have improved since their arrival
            self._charge(batch, seconds)

    def _charge(self, batch: Sequence[Ticket], seconds: float) -> None:
        """Charge callers for the duration of their run, instead of its estimate."""
        rows = sum(ticket.rows for ticket in batch)
        for ticket in batch:
            cost = seconds * ticket.rows / rows
            self._queue.correct(ticket, cost)
            ticket.cost = cost

    def _expect_more(self, now: float) -> None:
        """Raise the estimate of runs that take twice as long as expected, and charge for it.

        The estimate may be wrong, but the run is charged to its caller in any case.
        """
        for run in self._active.values():
            elapsed = now - run.begun
            if elapsed >= max(_OVERDUE_FACTOR * run.seconds, _OVERDUE_SECONDS):
                run.seconds = _OVERDUE_FACTOR * elapsed
                self._charge(run.batch, run.seconds)


def displaced(retry_after: float) -> SightlineError:
    """Return the error for members that have lost their places before their deadline."""
    reason = "other callers go first, and too little of the deadline is left"
    return _overload("QUEUE_TOO_SLOW", reason, retry_after)


def _overload(reason: str, detail: str, retry_after: float) -> SightlineError:
    """Return the error for a request that the server has no capacity for."""
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        f"overloaded: {detail}",
        retry_after=max(retry_after, _MIN_RETRY_SECONDS),
    )


def _prepare(tickets: Sequence[Ticket], now: float, *, probing: bool) -> None:
    """Set the estimated costs of a request's members."""
    first = tickets[0]
    estimates, full = first.lane.estimates, max(first.lane.max_rows, first.rows)
    share = estimates.mean(full, now) * first.rows / full
    for ticket in tickets:
        ticket.request, ticket.arrived = tickets, now
        decoding = estimates.decoding(ticket.effort, now)
        ticket.cost = share + decoding
        ticket.alone = 0.0 if probing else estimates.mean(ticket.rows, now) + decoding


def _require_in_time(
    tickets: Sequence[Ticket], begins: Sequence[float], needed: float, at_once: int, now: float
) -> None:
    """Raise `QUEUE_TOO_SLOW` if a request that must wait would be late."""
    left = tickets[0].deadline - now
    seconds = request_seconds(tickets, begins, needed, at_once, now)
    if begins[-1] and left <= seconds:
        detail = f"the queue of {begins[0]:.3f} s leaves too little of the {left:.3f} s deadline"
        raise _overload("QUEUE_TOO_SLOW", detail, seconds - left)


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
    """Return the error for a deadline that is shorter than the estimated run.

    The estimate may be wrong: once the lane is idle, a run is tried.
    """
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "DEADLINE_TOO_SHORT",
        f"the deadline leaves {left:.3f} s, the model needs about {needed:.3f} s",
        retry_after=max(drained, needed - left, _MIN_RETRY_SECONDS),
    )
