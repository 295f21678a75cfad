"""The order in which callers get their turns: weighted fair queueing over callers. Pure.

Each caller is a flow. A flow is served by its virtual time, which grows with the worker seconds
that it takes, divided by its weight; the flow that is furthest behind goes first. So whatever one
flow brings, in number or in size, another one waits for a turn and not for all that came before it.
Within a flow the earliest deadline goes first.

The server's virtual time is that of WF2Q+ (Bennett and Zhang, 1997): it grows with the work that is
begun, divided by the weights of those who wait, and stays within their virtual times. With
start-time fair queueing it would stand still for as long as new flows keep coming, and callers that
come once, with an identity or a connection for each call, would shut out those who stay.
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

_LEAST_SECONDS = 1e-3  # charged for a member of which nothing is known
_MOST_IDLE = 16_384  # flows without work whose virtual time is remembered
_CREDIT = 4  # members by which a flow that wanted nothing may come earlier
_USUAL_SHARE = 0.02  # that one member has in what is usual
_BURST = 8  # members by which a flow may have had more than its share at times
_deadline = operator.attrgetter("deadline")


@dataclass(slots=True)
class _CallerQueue:
    weight: float
    tag: float
    """Virtual time at which its next member starts."""
    waiting: list[Ticket] = field(default_factory=list)  # by deadline
    rows: int = 0
    """Of those that wait."""
    backlog: float = 0.0
    """Seconds that those that wait will be charged with."""
    longest: float = 0.0
    """Seconds of the longest run of one of them, or of one that waited before."""

    def add(self, ticket: Ticket, sign: int) -> None:
        """Count a member that comes (1) or leaves (-1)."""
        self.rows += sign * ticket.rows
        self.longest = max(self.longest, ticket.alone)
        self.backlog += sign * _charge(ticket)

    @property
    def last_turn(self) -> float:
        """Virtual time at which its last member starts."""
        return self.tag + (self.backlog - _charge(self.waiting[-1])) / self.weight


class FairQueue:
    """Tickets that wait, by flow."""

    def __init__(self) -> None:
        self._flows: dict[str, _CallerQueue] = {}  # with tickets that wait
        self._idle: OrderedDict[str, float] = OrderedDict()  # tags of the others, oldest first
        self._now = 0.0  # virtual
        self._usual = _LEAST_SECONDS  # charge of a member, lately
        self.ahead = 0.0
        """Virtual time that flows are charged for runs that are not over; of the flow with most.

        Without it, a flow that wants little would have no more turns than one that has long runs.
        """

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(flow.rows for flow in self._flows.values())

    @property
    def flows(self) -> int:
        """Flows that wait."""
        return len(self._flows)

    @property
    def backlog(self) -> float:
        """Seconds of a worker that all that waits is charged with."""
        return sum(flow.backlog for flow in self._flows.values())

    @property
    def weights(self) -> float:
        """Sum of the weights of the flows that wait."""
        return sum(flow.weight for flow in self._flows.values())

    def __bool__(self) -> bool:
        return bool(self._flows)

    def __iter__(self) -> Iterator[Ticket]:
        return itertools.chain.from_iterable(flow.waiting for flow in self._flows.values())

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Put a request's members, which share flow and deadline, into the queue."""
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
        """Take a member out of the queue; False: it is not in it."""
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
        """Yield the members in the order of their turns, each with the virtual time of it.

        Args:
            more: a request's members that are to be imagined among those that wait.
            gone: members that are to be imagined away.
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
        """Return the first in `order`; None: nothing waits."""
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
        """Return the least time that anybody has to spare if all run one by one, s.

        Args:
            now: as everywhere.
            more: seconds of a worker that come before all that wait.
        """
        least = math.inf
        for flow in self._flows.values():
            more += flow.backlog
            least = min(least, flow.waiting[0].deadline - now - flow.longest)
        return least - more

    def begin(self, batch: Sequence[Ticket]) -> None:
        """Take members that are about to be run out of the queue, and charge their flows."""
        self._now += sum(map(_charge, batch)) / self.weights
        for ticket in batch:
            self._usual += _USUAL_SHARE * (_charge(ticket) - self._usual)
            flow = self._flows[ticket.share.flow]
            flow.tag += _charge(ticket) / flow.weight
            self.remove(ticket)
            self._keep_up(flow.tag)

    def is_modest(self, ticket: Ticket) -> bool:
        """Return whether a member's flow has had no more than its share, and nothing waits for it.

        A caller that keeps below its share on average may be ahead by a few members at times.
        """
        if ticket.share.flow in self._flows:
            return False
        ahead = self._first_tag(ticket) - self._now
        return ahead <= _BURST * self._usual

    def may_gain(self, tickets: Sequence[Ticket]) -> bool:
        """Return whether other flows may hold places that a request deserves more; see `Places`."""
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
        """Remember the flow of a member that is refused: the next time, it is not new."""
        name = ticket.share.flow
        if name not in self._flows:
            self._keep_idle(name, self._first_tag(ticket))

    def correct(self, ticket: Ticket, seconds: float) -> None:
        """Charge a member's flow with what it took, in place of what it was expected to take."""
        share, more = ticket.share, (seconds - _charge(ticket)) / ticket.share.weight
        if share.flow in self._flows:
            self._flows[share.flow].tag += more
        elif share.flow in self._idle:
            self._idle[share.flow] += more
            self._keep_up(self._idle[share.flow])

    def _keep_up(self, tag: float) -> None:
        """Keep the server's virtual time within those of the flows that wait.

        Args:
            tag: virtual time of a flow that was served. If none waits, it has taken nothing from
                anybody, and must not owe it to those who come.
        """
        if self._flows:
            tags = [flow.tag for flow in self._flows.values()]
            self._now = min(max(self._now, min(tags)), max(tags))
        else:
            self._now = max(self._now, tag)

    def _first_tag(self, ticket: Ticket) -> float:
        """Return the virtual time of a flow that has had nothing to do.

        A flow that took less than its share goes ahead of those that take all of theirs, by a few
        members, or by as much as these are charged for runs that are not over; time in which it did
        not want anything is no more credit than that. A flow that is not known goes behind them
        once: who comes with another identity or connection each time must not be ahead of those
        who stay.
        """
        known = self._idle.get(ticket.share.flow)
        if known is None:
            return self._now + self._usual
        return max(known, self._now - max(_CREDIT * self._usual, self.ahead))

    def _rest(self, name: str, flow: _CallerQueue) -> None:
        """Remember the virtual time of a flow that has nothing left."""
        if flow.waiting:
            return
        del self._flows[name]
        self._keep_idle(name, flow.tag)

    def _keep_idle(self, name: str, tag: float) -> None:
        self._idle[name] = tag
        self._idle.move_to_end(name)
        if len(self._idle) > _MOST_IDLE:
            self._idle.popitem(last=False)


def _merged(waiting: Sequence[Ticket], more: Sequence[Ticket]) -> Sequence[Ticket]:
    at = bisect.bisect_right(waiting, more[0].deadline, key=_deadline)
    return [*waiting[:at], *more, *waiting[at:]]


def _charge(ticket: Ticket) -> float:
    return ticket.cost or _LEAST_SECONDS
