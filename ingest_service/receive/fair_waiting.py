"""A fair queue of messages before their commit: deficit round robin between callers. Pure.

A caller that sends as much as it can keeps megabytes waiting. In a first-in, first-out queue, a
small message of another caller would wait until all of them are committed.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
QUANTUM_BYTES = 64 * 1024
"""Bytes that each flow may add to a group per turn."""


@dataclass(slots=True)
class _Flow(Generic[T]):
    waiting: deque[tuple[int, T]] = field(default_factory=deque)
    credit: int = 0


class FairWaiting(Generic[T]):
    """A queue of messages, in the order of arrival within each flow."""

    def __init__(self) -> None:
        self.bytes = 0
        """Size of all waiting messages, bytes."""
        self._flows: OrderedDict[str, _Flow[T]] = OrderedDict()
        """Flows with waiting messages, in the order of their turns."""

    def __bool__(self) -> bool:
        return bool(self._flows)

    def put(self, flow: str, size: int, message: T) -> None:
        """Add a message.

        Args:
            flow: the caller that sent it.
            size: its size, bytes, >= 0.
            message: the message.
        """
        self._flows.setdefault(flow, _Flow()).waiting.append((size, message))
        self.bytes += size

    def take(self, limit: int) -> list[T]:
        """Remove and return messages: at least one if any waits, then up to `limit` bytes."""
        taken: list[T] = []
        end = self.bytes - limit
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
