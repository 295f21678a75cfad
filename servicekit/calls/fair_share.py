"""Fair sharing of bytes, and of waiting places, between flows. Pure: no clock, no event loop.

The fewer bytes are free, the fewer a flow may reserve: at most four times the bytes that it leaves
free (dynamic thresholds, Choudhury and Hahne 1998). So a single flow gets four fifths, two get four
ninths each, and a flow without reservations gets bytes at once. Flows need not be known beforehand,
and only their reserved bytes are counted.

A flow that lost a reservation because no message arrived is a suspect until one of its messages
arrives. All suspects together may reserve half of the bytes, and they wait behind the others. So a
flood over many connections (each is a flow where callers need no credential) leaves the other half
free.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

W = TypeVar("W")
"""Type of the waiters; hashable."""
R = TypeVar("R")
"""Type of the reservations."""
_THRESHOLD = 4
"""Factor of the free bytes that a flow may reserve."""
_MAX_SUSPECTS = 10_000
"""Maximum number of suspects; beyond it the first one is trusted again."""


class FairShare(Generic[W]):
    """Fair allocation of bytes and waiting places between flows.

    Args:
        limit: bytes that all flows may reserve.
        places: maximum number of waiters.
    """

    def __init__(self, limit: int, places: int) -> None:
        self.limit = limit
        self.places = places
        self.held = 0
        """Reserved bytes of all flows."""
        self.waiting = 0
        """Number of waiters of all flows."""
        self._held: dict[str, int] = {}
        self._queues: OrderedDict[str, dict[W, None]] = OrderedDict()
        """Waiters by flow, in the order of arrival; the flow whose turn it is comes first."""
        self._suspects: dict[str, None] = {}
        self._suspected = 0  # their reserved bytes

    def held_by(self, flow: str) -> int:
        """Return the reserved bytes of a flow."""
        return self._held.get(flow, 0)

    def reserve(self, flow: str, size: int) -> bool:
        """Reserve bytes for a flow, and return True if they were available."""
        own = self._held.get(flow, 0)
        left = self.limit - self.held - size
        if left < 0 or own > _THRESHOLD * left:
            return False
        if flow in self._suspects:
            if self.held and 2 * (self._suspected + size) > self.limit:
                return False
            self._suspected += size
        self.held += size
        self._held[flow] = own + size
        return True

    def release(self, flow: str, size: int) -> None:
        """Release bytes of a flow."""
        self.held -= size
        if flow in self._suspects:
            self._suspected -= size
        left = self._held.get(flow, 0) - size
        if left > 0:
            self._held[flow] = left
        else:
            self._held.pop(flow, None)

    def enqueue(self, flow: str, waiter: W) -> W | None:
        """Append a waiter to its flow's queue, and return the waiter that loses its place, if any.

        The loser is the last one of a suspect's queue, or else of the longest queue.
        """
        self._queues.setdefault(flow, {})[waiter] = None
        self.waiting += 1
        if self.waiting <= self.places:
            return None
        loser = max(self._queues, key=self._claim)
        if self._claim(loser) == self._claim(flow):
            loser = flow
        last = next(reversed(self._queues[loser]))
        self.remove(loser, last)
        return last

    def _claim(self, flow: str) -> tuple[bool, int]:
        return flow in self._suspects, len(self._queues[flow])

    def remove(self, flow: str, waiter: W) -> None:
        """Remove a waiter from its queue, if it is there."""
        queue = self._queues.get(flow)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        self.waiting -= 1
        if not queue:
            del self._queues[flow]

    def suspect(self, flow: str) -> None:
        """Note that the flow lost a reservation because no message arrived."""
        if flow in self._suspects:
            return
        if len(self._suspects) >= _MAX_SUSPECTS:
            self.trust(next(iter(self._suspects)))
        self._suspects[flow] = None
        self._suspected += self.held_by(flow)

    def trust(self, flow: str) -> None:
        """Note that a message of the flow has arrived."""
        if flow in self._suspects:
            del self._suspects[flow]
            self._suspected -= self.held_by(flow)

    def next(self, size: int) -> W | None:
        """Reserve bytes for the next waiter and return it; None: there is none that may have them.

        Flows take turns, suspects after the others. Flows above their threshold are skipped.
        """
        return self._next(size, suspects=False) or self._next(size, suspects=True)

    def _next(self, size: int, *, suspects: bool) -> W | None:
        for flow in self._queues:
            if self.limit - self.held < size:
                return None
            if (flow in self._suspects) is suspects and self.reserve(flow, size):
                waiter = next(iter(self._queues[flow]))
                self._queues.move_to_end(flow)
                self.remove(flow, waiter)
                return waiter
        return None

    def victims(
        self, size: int, waiting: Iterable[str], stalled: Sequence[tuple[str, R]]
    ) -> list[R]:
        """Return the reservations to end so that waiters get memory.

        The flow with most bytes loses first, its oldest reservation first. A flow never loses one
        to another flow that would then have more than it: a slow sender within its share stays.
        Suspects only get memory of suspects, because they could not reserve other memory.

        Args:
            size: bytes of one reservation.
            waiting: the flow of each waiter.
            stalled: reservations without data, oldest first, with their flows.
        """
        held = dict(self._held)
        left = list(stalled)
        victims: list[R] = []
        in_vain: set[str] = set()  # flows for which there is no victim; a queue may be long
        for flow in waiting:
            if flow in in_vain:
                continue
            own = held.get(flow, 0)
            able = [
                candidate
                for candidate in left
                if candidate[0] == flow
                or (held.get(candidate[0], 0) >= own + size and self._yields(candidate, flow))
            ]
            if not able:
                in_vain.add(flow)
                continue
            loser = max(
                able, key=lambda candidate: held.get(candidate[0], 0)
            )  # the first of equals
            left.remove(loser)
            _move(held, loser[0], flow, size)
            victims.append(loser[1])
        return victims

    def _yields(self, reservation: tuple[str, R], flow: str) -> bool:
        return flow not in self._suspects or reservation[0] in self._suspects


def _move(held: dict[str, int], loser: str, winner: str, size: int) -> None:
    held[loser] = held.get(loser, 0) - size
    held[winner] = held.get(winner, 0) + size
