"""Share bytes, and places to wait for them, fairly between flows. Pure: no clock, no event loop.

A flow may hold what it likes while most of the bytes are free, and less the fewer are: at most four
times what it leaves free (dynamic thresholds, Choudhury and Hahne 1998). So one flow alone gets
four fifths, two get four ninths each, and a flow that holds nothing finds room at once. No flow
needs to be known beforehand, and nothing has to be counted but what each one holds.

A flow whose room was taken back because nothing came is a suspect until a message of its comes. All
suspects together may hold half of the bytes, and they wait behind the others. So a flood over many
connections, each of which is a flow where callers need no credential, leaves the other half free.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

W = TypeVar("W")
"""What stands for one that waits; hashable."""
R = TypeVar("R")
"""What stands for one that holds room."""
_GREED = 4
"""How many times what it leaves free a flow may hold."""
_MAX_SUSPECTS = 10_000
"""Beyond which the first one is trusted again."""


class FairShare(Generic[W]):
    """Fair allocation of bytes and waiting places between flows.

    Args:
        most: bytes that all flows may hold.
        places: how many may wait.
    """

    def __init__(self, most: int, places: int) -> None:
        self.most = most
        self.places = places
        self.held = 0
        """Bytes, of all flows."""
        self.waiting = 0
        """How many wait, of all flows."""
        self._held: dict[str, int] = {}
        self._lines: OrderedDict[str, dict[W, None]] = OrderedDict()
        """Who waits, by flow, first come first; the flow whose turn it is comes first."""
        self._suspects: dict[str, None] = {}
        self._suspected = 0  # bytes that they hold

    def held_by(self, flow: str) -> int:
        """Return the bytes that a flow holds."""
        return self._held.get(flow, 0)

    def take(self, flow: str, size: int) -> bool:
        """Take bytes for a flow, and return whether there was room for them."""
        own = self._held.get(flow, 0)
        left = self.most - self.held - size
        if left < 0 or own > _GREED * left:
            return False
        if flow in self._suspects:
            if self.held and 2 * (self._suspected + size) > self.most:
                return False
            self._suspected += size
        self.held += size
        self._held[flow] = own + size
        return True

    def give(self, flow: str, size: int) -> None:
        """Give bytes of a flow back."""
        self.held -= size
        if flow in self._suspects:
            self._suspected -= size
        left = self._held.get(flow, 0) - size
        if left > 0:
            self._held[flow] = left
        else:
            self._held.pop(flow, None)

    def wait(self, flow: str, waiter: W) -> W | None:
        """Put a waiter at the end of its flow's line; return who has to leave for want of places.

        It is the last one of a suspect's line, or else of the longest; None: there are places.
        """
        self._lines.setdefault(flow, {})[waiter] = None
        self.waiting += 1
        if self.waiting <= self.places:
            return None
        loser = max(self._lines, key=self._claim)
        if self._claim(loser) == self._claim(flow):
            loser = flow
        last = next(reversed(self._lines[loser]))
        self.leave(loser, last)
        return last

    def _claim(self, flow: str) -> tuple[bool, int]:
        return flow in self._suspects, len(self._lines[flow])

    def leave(self, flow: str, waiter: W) -> None:
        """Take a waiter out of its line, if it is still there."""
        line = self._lines.get(flow)
        if line is None or waiter not in line:
            return
        del line[waiter]
        self.waiting -= 1
        if not line:
            del self._lines[flow]

    def suspect(self, flow: str) -> None:
        """Note that a room of the flow was taken back because nothing came."""
        if flow in self._suspects:
            return
        if len(self._suspects) >= _MAX_SUSPECTS:
            self.trust(next(iter(self._suspects)))
        self._suspects[flow] = None
        self._suspected += self.held_by(flow)

    def trust(self, flow: str) -> None:
        """Note that a message of the flow has come."""
        if flow in self._suspects:
            del self._suspects[flow]
            self._suspected -= self.held_by(flow)

    def next(self, size: int) -> W | None:
        """Take bytes for the waiter whose turn it is and return it; None: nobody's turn has come.

        Flows take turns, suspects after the others; those that hold too much are passed over.
        """
        return self._next(size, suspects=False) or self._next(size, suspects=True)

    def _next(self, size: int, *, suspects: bool) -> W | None:
        for flow in self._lines:
            if self.most - self.held < size:
                return None
            if (flow in self._suspects) is suspects and self.take(flow, size):
                waiter = next(iter(self._lines[flow]))
                self._lines.move_to_end(flow)
                self.leave(flow, waiter)
                return waiter
        return None

    def victims(
        self, size: int, waiting: Iterable[str], stalled: Sequence[tuple[str, R]]
    ) -> list[R]:
        """Return who has to give its room back so that those who wait get one.

        The flow that holds most loses first, and its oldest room first. A flow never loses a room
        to another that would then hold more than it: a slow sender within its share stays. Suspects
        get no room but of suspects, since it would not be given to them.

        Args:
            size: bytes of one room.
            waiting: the flow of each waiter.
            stalled: rooms that do not fill, the oldest first, with their flows.
        """
        held = dict(self._held)
        left = list(stalled)
        found: list[R] = []
        in_vain: set[str] = set()  # a line may be long, and what one gets none of it gets
        for flow in waiting:
            if flow in in_vain:
                continue
            own = held.get(flow, 0)
            able = [
                each
                for each in left
                if each[0] == flow
                or (held.get(each[0], 0) >= own + size and self._yields(each, flow))
            ]
            if not able:
                in_vain.add(flow)
                continue
            loser = max(able, key=lambda each: held.get(each[0], 0))  # the first of equals
            left.remove(loser)
            _move(held, loser[0], flow, size)
            found.append(loser[1])
        return found

    def _yields(self, room: tuple[str, R], flow: str) -> bool:
        return flow not in self._suspects or room[0] in self._suspects


def _move(held: dict[str, int], loser: str, winner: str, size: int) -> None:
    held[loser] = held.get(loser, 0) - size
    held[winner] = held.get(winner, 0) + size
