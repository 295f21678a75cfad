"""Choice of the requests that give up their places in a full queue. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from inference_service.serving.tickets import Ticket


@dataclass(slots=True)
class _Request:
    """The waiting members of a request."""

    turn: float
    """Virtual time of its first member's turn."""
    members: list[Ticket] = field(default_factory=list)


class Places:
    """The places of a full queue, for a new request.

    Args:
        turns: all waiting members and those of the new request, in the order of their turns, each
            with the virtual time of its turn.
        newcomer: the members of the new request.
    """

    def __init__(self, turns: Iterable[tuple[float, Ticket]], newcomer: Sequence[Ticket]) -> None:
        self._newcomer = newcomer
        self._share = newcomer[0].share
        self._requests: dict[int, _Request] = {}  # the earliest turn first
        self._rows: Counter[str] = Counter()  # by flow, without the newcomer's
        for turn, ticket in turns:
            request = self._requests.setdefault(id(ticket.request), _Request(turn))
            request.members.append(ticket)
            if ticket.request is not newcomer:
                self._rows[ticket.share.flow] += ticket.rows

    def latest_first(self) -> Iterator[list[Ticket]]:
        """Yield the members of other flows' requests that have not started, last turn first."""
        for request in reversed(self._requests.values()):
            first = request.members[0]
            if first.share.flow != self._share.flow and not any(t.begun for t in first.request):
                yield request.members

    def may_replace(self, members: Sequence[Ticket]) -> bool:
        """Return True if the newcomer may take over the places of a request.

        It may if its turn comes earlier, or if its flow holds fewer places by weight, including the
        new ones.
        """
        if self._turn(members) > self._turn(self._newcomer):
            return True
        share = members[0].share
        theirs = (self._rows[share.flow] - _rows(members)) / share.weight
        own = self._rows[self._share.flow] + _rows(self._newcomer)
        return own / self._share.weight <= theirs

    def give_up(self, members: Sequence[Ticket]) -> int:
        """Release the places of a request, and return the number of free rows."""
        rows = _rows(members)
        self._rows[members[0].share.flow] -= rows
        return rows

    def _turn(self, members: Sequence[Ticket]) -> float:
        return self._requests[id(members[0].request)].turn


def _rows(members: Sequence[Ticket]) -> int:
    return sum(ticket.rows for ticket in members)
