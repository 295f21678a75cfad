"""Queue of messages before a commit, fair between callers: deficit round robin. Pure.

A caller that sends as much as it can keeps megabytes waiting. First come, first served, a small
message of another would wait until all of them are committed.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
QUANTUM_BYTES = 64 * 1024
"""What each flow may add to a group in its turn."""


@dataclass(slots=True)
class _Flow(Generic[T]):
    waiting: deque[tuple[int, T]] = field(default_factory=deque)
    credit: int = 0


class FairWaiting(Generic[T]):
    """Messages that wait, each flow's in the order of their arrival."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of all that wait."""
        self._flows: OrderedDict[str, _Flow[T]] = OrderedDict()
        """Those with something that waits, the next to be served first."""

    def __bool__(self) -> bool:
        return bool(self._flows)

    def put(self, flow: str, size: int, message: T) -> None:
        """Add a message.

        Args:
            flow: whose it is.
            size: bytes, >= 0.
            message: anything.
        """
        self._flows.setdefault(flow, _Flow()).waiting.append((size, message))
        self.bytes += size

    def take(self, most: int) -> list[T]:
        """Return at least one message if any waits, and no further one from `most` bytes on."""
        taken: list[T] = []
        end = self.bytes - most
        while self._flows and (not taken or self.bytes > end):
            name, flow = next(iter(self._flows.items()))
            flow.credit += QUANTUM_BYTES
            self._serve(flow, taken, end)
            if flow.waiting:
                self._flows.move_to_end(name)
            else:
                del self._flows[name]
        return taken

    def _serve(self, flow: _Flow[T], taken: list[T], end: int) -> None:
        while flow.waiting and flow.waiting[0][0] <= flow.credit:
            if taken and self.bytes <= end:
                return
            size, message = flow.waiting.popleft()
            flow.credit -= size
            self.bytes -= size
            taken.append(message)
