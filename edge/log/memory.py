"""The bounded queue between whoever logs and the writer thread."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from edge.errors import ClosedError
from edge.records import Prediction
from edge.spool.entries import Dropped, GapReason

OnFull = Literal["block", "drop_oldest", "drop_newest"]
Logged = tuple[Prediction, float]
"""A prediction and when it was logged, in Unix seconds."""
_INBOX = 512  # as many at most have to be moved by one unlucky caller
_now = time.time


class Memory:
    """Predictions that wait for the spool, bounded by count and by bytes on the wire.

    Every prediction has an ordinal: its place, from 1, among all that were logged, the dropped ones
    included.

    There are two ways in. While the memory is being emptied in time, a small prediction goes into
    the inbox without a lock, for to take one is most of what the call would cost. Everything else
    takes the lock and first moves the inbox to the entries, where the policies apply.

    Args:
        on_full: what `put` does at the bound.
        max_predictions: bound by count, >= 1; threads that log while the inbox is being closed
            may exceed it by one each.
        max_bytes: bound by the sum of `Prediction.size`, at least `records.MAX_SIZE`.
        on_first: called, outside the lock, when a prediction enters and the last `take` found none.
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
        self._room = threading.Condition(threading.Lock())
        self._entries: deque[Logged | Dropped] = deque()
        self._predictions = 0  # those among the entries
        self._bytes = 0
        self._logged = 0  # the last ordinal among the entries
        self._is_idle = True  # the last `take` found nothing
        self._is_half = False  # `on_half` was called since the last `take`
        self._is_closed = False
        self._inbox: deque[Logged] = deque()
        self._inbox_size = min(_INBOX, max_predictions // 2)
        self._inbox_room = 0  # `_inbox_size`, or 0: everyone takes the lock
        self._small = max_bytes // max(1, self._inbox_size)

    def __len__(self) -> int:
        with self._room:
            return self._predictions + len(self._inbox)

    @property
    def logged(self) -> int:
        """The last ordinal; 0: nothing was logged."""
        with self._room:
            return self._logged + len(self._inbox)

    def put(self, prediction: Prediction, timeout: float | None = None) -> None:
        """Take a prediction, in microseconds unless it has to block; raise what `enter` does."""
        if len(self._inbox) >= self._inbox_room or prediction.size > self._small:
            self.enter(prediction, timeout)
            return
        self._inbox.append((prediction, _now()))
        if not self._inbox_room:  # closed after the first look: nobody might come for it
            self._collect(prediction)

    def enter(self, prediction: Prediction, timeout: float | None = None) -> int:
        """Take a prediction and return its ordinal.

        Args:
            prediction: the record.
            timeout: how long to block at most, in seconds; None: for as long as it takes.

        Raises:
            ClosedError: the memory is closed.
            TimeoutError: it had to block for longer than `timeout`.
        """
        with self._room:
            self._settle()
            if self._fits(prediction.size) or self._make_room(prediction.size, timeout):
                self._add((prediction, _now()))
            ordinal = self._logged
            call = self._due()
        if call is not None:
            call()
        return ordinal

    def take(self) -> list[Logged | Dropped]:
        """Return everything that waits, oldest first, and make room."""
        with self._room:
            if not self._entries and not self._inbox:
                self._inbox_room = 0  # who enters from now on announces it
            fresh = [self._inbox.popleft() for _ in range(len(self._inbox))]
            taken = [*self._entries, *fresh]
            self._entries.clear()
            self._predictions = self._bytes = 0
            self._logged += len(fresh)
            self._is_idle, self._is_half = not taken, False
            self._inbox_room = 0 if self._is_closed or self._is_idle else self._inbox_size
            self._room.notify_all()
        return taken

    def close(self) -> None:
        """Refuse every further prediction; what waits can still be taken."""
        with self._room:
            self._is_closed = True
            self._settle()
            self._max_predictions = 0
            self._room.notify_all()

    def _settle(self) -> None:
        """Close the inbox, under the lock, until the next `take`, and empties it."""
        self._inbox_room = 0
        while self._inbox:
            self._add(self._inbox.popleft())

    def _collect(self, prediction: Prediction) -> None:
        """Do what `enter` would have done for a prediction that came just after the closing."""
        with self._room:
            if self._is_closed and self._withdraw(prediction):
                raise ClosedError("the logger is closed")
            self._settle()
            call = self._due()
        if call is not None:
            call()

    def _withdraw(self, prediction: Prediction) -> bool:
        for _ in range(len(self._inbox)):
            entry = self._inbox.popleft()
            if entry[0] is prediction:
                return True
            self._inbox.append(entry)
        return False

    def _add(self, entry: Logged) -> None:
        self._entries.append(entry)
        self._bytes += entry[0].size
        self._predictions += 1
        self._logged += 1

    def _due(self) -> Callable[[], object] | None:
        """Return the callback that is due now that something has entered, under the lock."""
        if self._is_idle:
            self._is_idle = False
            return self._on_first
        if self._predictions >= self._half and not self._is_half:
            self._is_half = True
            return self._on_half
        return None

    def _fits(self, size: int) -> bool:
        return self._predictions < self._max_predictions and self._bytes + size <= self._max_bytes

    def _has_room(self, size: int) -> bool:
        self._settle()  # `take` has opened the inbox again
        return self._fits(size)

    def _make_room(self, size: int, timeout: float | None) -> bool:
        """Apply the policy, under the lock; False: the prediction itself has been dropped."""
        if self._on_full == "block":
            self._room.wait_for(lambda: self._is_closed or self._has_room(size), timeout)
        if self._is_closed:
            raise ClosedError("the logger is closed")
        if self._on_full == "drop_newest":
            self._drop_newest()
            return False
        while self._on_full == "drop_oldest" and not self._fits(size):
            self._drop_oldest()
        if not self._fits(size):
            raise TimeoutError(f"not logged: memory had no room for it within {timeout} s")
        return True

    def _drop_newest(self) -> None:
        dropped = self._entries[-1]
        if not isinstance(dropped, Dropped):
            dropped = Dropped(0, GapReason.DROPPED_NEWEST)
            self._entries.append(dropped)
        self._entries[-1] = Dropped(dropped.count + 1, dropped.reason)
        self._logged += 1

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
