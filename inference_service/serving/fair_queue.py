"""Weighted fair queueing over callers. Pure.

Each caller is a flow. Flows are served by their virtual time, which grows with the worker seconds
that they use, divided by their weight; the flow with the lowest virtual time goes first. However
many or large the requests of one flow are, another flow waits for one turn, not for all of them.
Within a flow the earliest deadline goes first.

The server's virtual time is that of WF2Q+ (Bennett and Zhang, 1997): it grows with the started
work, divided by the weights of the waiting flows, and stays within their virtual times. With
start-time fair queueing it would stop while new flows keep arriving, and callers that use a new
identity or connection for each call would starve the others.
"""

import bisect
import heapq
import itertools
import math
import operator
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from inference_service.serving.tickets import Ticket

_MIN_CHARGE = 1e-3  # s, for a member without an estimate
_MAX_IDLE = 16_384  # idle flows whose virtual time is remembered
_CREDIT = 4  # members that an idle flow may get ahead of its turn
_USUAL_SHARE = 0.02  # weight of one member in the moving average of charges
_BURST = 8  # members by which a modest flow may temporarily exceed its share
_deadline = operator.attrgetter("deadline")


@dataclass(slots=True)
class _CallerQueue:
    """The waiting members of one flow."""

    weight: float
    tag: float
    """Virtual start time of its next member."""
    waiting: list[Ticket] = field(default_factory=list)  # by deadline
    rows: int = 0
    """Waiting rows."""
    backlog: float = 0.0
    """Charge of the waiting members, s."""
    longest: float = 0.0
    """Longest estimated run of a present or past member, s."""

    def add(self, ticket: Ticket, sign: int) -> None:
        """Count a member that is added (1) or removed (-1)."""
        self.rows += sign * ticket.rows
        self.longest = max(self.longest, ticket.alone)
        self.backlog += sign * _charge(ticket)

    @property
    def last_turn(self) -> float:
        """Virtual start time of its last member."""
        return self.tag + (self.backlog - _charge(self.waiting[-1])) / self.weight


class FairQueue:
    """The waiting tickets of all flows."""

    def __init__(self) -> None:
        self._flows: dict[str, _CallerQueue] = {}  # with waiting tickets
        self._idle: OrderedDict[str, float] = OrderedDict()  # tags of idle flows, oldest first
        self._now = 0.0  # virtual time of the server
        self._usual = _MIN_CHARGE  # moving average of the charge of a member
        self.ahead = 0.0
        """Highest virtual time that a flow is charged for unfinished runs.

        Without it, a flow with few short runs would get no more turns than one with long runs.
        """

    @property
    def rows(self) -> int:
        """Number of waiting rows."""
        return sum(flow.rows for flow in self._flows.values())

    @property
    def flows(self) -> int:
        """Number of waiting flows."""
        return len(self._flows)

    @property
    def backlog(self) -> float:
        """Charge of all waiting members, s."""
        return sum(flow.backlog for flow in self._flows.values())

    @property
    def weights(self) -> float:
        """Sum of the weights of the waiting flows."""
        return sum(flow.weight for flow in self._flows.values())

    def __bool__(self) -> bool:
        return bool(self._flows)

    def __iter__(self) -> Iterator[Ticket]:
        return itertools.chain.from_iterable(flow.waiting for flow in self._flows.values())

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Add the members of a request, which share flow and deadline."""
        share = tickets[0].share
        flow = self._flows.get(share.flow)
        if flow is None:
            flow = self._flows[share.flow] = _CallerQueue(share.weight, self._first_tag(tickets[0]))
            self._idle.pop(share.flow, None)
        at = bisect.bisect_right(flow.waiting, tickets[0].deadline, key=_deadline)
        flow.waiting[at:at] = tickets
        for ticket in tickets:
            flow.add(ticket, 1)

    def remove(self, ticket: Ticket) -> bool:
        """Remove a member; False if it is not in the queue."""
        flow = self._flows.get(ticket.share.flow)
        if flow is None:
            return False
        at = bisect.bisect_left(flow.waiting, ticket.deadline, key=_deadline)
        while at < len(flow.waiting) and flow.waiting[at].deadline == ticket.deadline:
            if flow.waiting[at] is ticket:
                del flow.waiting[at]
                flow.add(ticket, -1)
                self._rest(ticket.share.flow, flow)
                return True
            at += 1
        return False

    def order(
        self, more: Sequence[Ticket] = (), gone: Collection[Ticket] = ()
    ) -> Iterator[tuple[float, Ticket]]:
        """Yield the members in the order of their turns, with the virtual time of each.

        Args:
            more: members of a request to include as if they were waiting.
            gone: members to leave out.
        """
        heads: list[tuple[float, float, int, int, float, Sequence[Ticket]]] = []
        waiting: Sequence[Ticket]
        own = more[0].share.flow if more else None
        for number, (name, flow) in enumerate(self._flows.items()):
            waiting = _merged(flow.waiting, more) if name == own else flow.waiting
            if gone:
                waiting = [ticket for ticket in waiting if ticket not in gone]
            if not waiting:
                continue
            heads.append((flow.tag, waiting[0].deadline, number, 0, flow.weight, waiting))
        if more and own not in self._flows:
            weight, tag = more[0].share.weight, self._first_tag(more[0])
            heads.append((tag, more[0].deadline, len(self._flows), 0, weight, more))
        heapq.heapify(heads)
        while heads:
            tag, _, number, at, weight, waiting = heads[0]
            ticket = waiting[at]
            yield tag, ticket
            at += 1
            if at == len(waiting):
                heapq.heappop(heads)
            else:
                tag += _charge(ticket) / weight
                due = waiting[at].deadline
                heapq.heapreplace(heads, (tag, due, number, at, weight, waiting))

    def next(self) -> Ticket | None:
        """Return the first member of `order`; None if the queue is empty."""
        first: _CallerQueue | None = None
        for flow in self._flows.values():
            if (
                first is None
                or flow.tag < first.tag
                or (flow.tag == first.tag and flow.waiting[0].deadline < first.waiting[0].deadline)
            ):
                first = flow
        return first.waiting[0] if first else None

    def slack(self, now: float, more: float) -> float:
        """Return the lowest slack of any member if all run one after the other, s.

        Args:
            now: current time, s.
            more: worker seconds that precede all waiting members.
        """
        lowest = math.inf
        for flow in self._flows.values():
            more += flow.backlog
            lowest = min(lowest, flow.waiting[0].deadline - now - flow.longest)
        return lowest - more

    def begin(self, batch: Sequence[Ticket]) -> None:
        """Remove members that are about to run, and charge their flows."""
        self._now += sum(map(_charge, batch)) / self.weights
        for ticket in batch:
            self._usual += _USUAL_SHARE * (_charge(ticket) - self._usual)
            flow = self._flows[ticket.share.flow]
            flow.tag += _charge(ticket) / flow.weight
            self.remove(ticket)
            self._keep_up(flow.tag)

    def is_modest(self, ticket: Ticket) -> bool:
        """Return True if a member's flow has no waiting member and has had at most its share.

        A caller that stays below its share on average may temporarily exceed it by a few members.
        """
        if ticket.share.flow in self._flows:
            return False
        ahead = self._first_tag(ticket) - self._now
        return ahead <= _BURST * self._usual

    def may_gain(self, tickets: Sequence[Ticket]) -> bool:
        """Return True if a request may take over places of other flows; see `Places`."""
        share, rows = tickets[0].share, sum(ticket.rows for ticket in tickets)
        own = self._flows.get(share.flow)
        if own is None:
            turn, held = self._first_tag(tickets[0]), 0
        else:
            at = bisect.bisect_right(own.waiting, tickets[0].deadline, key=_deadline)
            turn = own.tag + sum(map(_charge, own.waiting[:at])) / own.weight
            held = own.rows
        return any(
            flow.last_turn > turn or (held + rows) / share.weight < flow.rows / flow.weight
            for flow in self._flows.values()
            if flow is not own
        )

    def remember(self, ticket: Ticket) -> None:
        """Remember the flow of a refused member, so that it is not new the next time."""
        name = ticket.share.flow
        if name not in self._flows:
            self._keep_idle(name, self._first_tag(ticket))

    def correct(self, ticket: Ticket, seconds: float) -> None:
        """Charge a member's flow for its actual duration instead of the estimate."""
        share, more = ticket.share, (seconds - _charge(ticket)) / ticket.share.weight
        if share.flow in self._flows:
            self._flows[share.flow].tag += more
        elif share.flow in self._idle:
            self._idle[share.flow] += more
            self._keep_up(self._idle[share.flow])

    def _keep_up(self, tag: float) -> None:
        """Keep the server's virtual time within those of the waiting flows.

        Args:
            tag: virtual time of the served flow. If no flow waits, it has taken nothing from
                others, and new flows must not overtake it for that.
        """
        if self._flows:
            tags = [flow.tag for flow in self._flows.values()]
            self._now = min(max(self._now, min(tags)), max(tags))
        else:
            self._now = max(self._now, tag)

    def _first_tag(self, ticket: Ticket) -> float:
        """Return the virtual time at which an idle flow starts again.

        A flow that used less than its share goes ahead of the others by a few members, or by their
        charge for unfinished runs, which is its maximum credit for idle time. An unknown flow
        starts behind the others: callers that use a new identity or connection each time must not
        overtake the others.
        """
        known = self._idle.get(ticket.share.flow)
        if known is None:
            return self._now + self._usual
        return max(known, self._now - max(_CREDIT * self._usual, self.ahead))

    def _rest(self, name: str, flow: _CallerQueue) -> None:
        """Remember the virtual time of a flow that has become idle."""
        if flow.waiting:
            return
        del self._flows[name]
        self._keep_idle(name, flow.tag)

    def _keep_idle(self, name: str, tag: float) -> None:
        self._idle[name] = tag
        self._idle.move_to_end(name)
        if len(self._idle) > _MAX_IDLE:
            self._idle.popitem(last=False)


def _merged(waiting: Sequence[Ticket], more: Sequence[Ticket]) -> Sequence[Ticket]:
    at = bisect.bisect_right(waiting, more[0].deadline, key=_deadline)
    return [*waiting[:at], *more, *waiting[at:]]


def _charge(ticket: Ticket) -> float:
    return ticket.cost or _MIN_CHARGE
