"""The bounded queue between whoever logs and the writer thread."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from edge.log.entries import Dropped, GapReason
from edge.records import Prediction

OnFull = Literal["block", "drop_oldest", "drop_newest"]
Logged = tuple[Prediction, float]
"""A prediction and when it was logged, in Unix seconds."""


class ClosedError(RuntimeError):
    """The logger is closed: nothing can be logged any more."""


class Memory:
    """Predictions that wait for the spool, bounded by count and by bytes on the wire.

    Every prediction has an ordinal: its place, from 1, among all that were logged, the dropped ones
    included.

    Args:
        on_full: what `put` does at the bound.
        max_predictions: bound by count, >= 1.
        max_bytes: bound by the sum of `Prediction.size`, at least `records.MAX_SIZE`.
        on_first: called, outside the lock, when a prediction enters an empty memory.
        on_half: called likewise when the memory becomes half full by count.
    """

    def __init__(
        self,
        on_full: OnFull,
        max_predictions: int,
        max_bytes: int,
        on_first: Callable[[], object],
        on_half: Callable[[], object],
    ) -> None:
        self._on_full = on_full
        self._max_predictions = max_predictions
        self._max_bytes = max_bytes
        self._on_first = on_first
        self._on_half = on_half
        self._half = max(2, max_predictions // 2)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._entries: deque[Logged | Dropped] = deque()
        self._predictions = 0
        self._bytes = 0
        self._closed = False
        self.logged = 0
        """The last ordinal; 0: nothing was logged."""

    def __len__(self) -> int:
        return self._predictions

    def put(self, prediction: Prediction, timeout: float | None = None) -> int:
        """Takes a prediction and returns its ordinal, in microseconds unless it has to block.

        Args:
            prediction: the record.
            timeout: how long to block at most, in seconds; None: for as long as it takes.

        Raises:
            ClosedError: the memory is closed.
            TimeoutError: it had to block for longer than `timeout`.
        """
        size = prediction.size
        with self._lock:
            # `_fits`, without a call. A closed memory has no room: one test for both.
            if (
                self._predictions >= self._max_predictions or self._bytes + size > self._max_bytes
            ) and not self._make_room(size, timeout):
                return self.logged
            self._entries.append((prediction, time.time()))
            self._bytes += size
            self._predictions += 1
            self.logged += 1
            ordinal, waiting = self.logged, self._predictions
        if waiting == 1:
            self._on_first()
        elif waiting == self._half:
            self._on_half()
        return ordinal

    def take(self) -> list[Logged | Dropped]:
        """Returns everything that waits, oldest first, and makes room."""
        with self._lock:
            taken, self._entries = self._entries, deque()
            self._predictions = self._bytes = 0
            self._room.notify_all()
        return list(taken)

    def close(self) -> None:
        """Refuses every further prediction; what waits can still be taken."""
        with self._lock:
            self._closed = True
            self._max_predictions = 0
            self._room.notify_all()

    def _fits(self, size: int) -> bool:
        return self._predictions < self._max_predictions and self._bytes + size <= self._max_bytes

    def _make_room(self, size: int, timeout: float | None) -> bool:
        """Applies the policy, under the lock; False: the prediction itself has been dropped."""
        if self._on_full == "block":
            self._room.wait_for(lambda: self._closed or self._fits(size), timeout)
        if self._closed:
            raise ClosedError("the logger is closed")
        if self._on_full == "drop_newest":
            self._drop_newest()
            return False
        while self._on_full == "drop_oldest" and not self._fits(size):
            self._drop_oldest()
        if not self._fits(size):
            raise TimeoutError(f"memory had no room for the prediction within {timeout} s")
        return True

    def _drop_newest(self) -> None:
        dropped = self._entries[-1]
        if not isinstance(dropped, Dropped):
            dropped = Dropped(0, GapReason.DROPPED_NEWEST)
            self._entries.append(dropped)
        self._entries[-1] = Dropped(dropped.count + 1, dropped.reason)
        self.logged += 1

    def _drop_oldest(self) -> None:
        count = 1
        oldest = self._entries.popleft()
        if isinstance(oldest, Dropped):
            count += oldest.count
            oldest = self._entries.popleft()
        if not isinstance(oldest, Dropped):  # runs of drops are merged: two never meet
            self._bytes -= oldest[0].size
            self._predictions -= 1
        self._entries.appendleft(Dropped(count, GapReason.DROPPED_OLDEST))
