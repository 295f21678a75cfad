"""What became of the frames of each source."""

import threading
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class SourceState(StrEnum):
    """How a source is."""

    STARTING = "starting"
    """No frame has come yet."""
    READING = "reading"
    LOST = "lost"
    """Gone for now; it is being looked for."""
    ENDED = "ended"
    """There are no more frames, or no more are wanted."""
    FAILED = "failed"
    """It cannot be read (any more)."""


class FrameOutcome(StrEnum):
    """What became of one frame."""

    SKIPPED = "skipped"
    """Not wanted: only every n-th, or one every t seconds, is."""
    DROPPED = "dropped"
    """It was old, and nobody had time for it."""
    BY_DEVICE = "by_device"
    """Answered by the device."""
    BY_CLOUD = "by_cloud"
    """Answered by the cloud."""
    FAILED = "failed"
    """Nobody answered."""


@dataclass(frozen=True, slots=True)
class SourceStats:
    """What became of the frames of one source so far.

    `read` is the sum of the others up to `waiting`.
    """

    state: SourceState
    read: int
    """Frames that the source gave."""
    skipped: int
    dropped: int
    by_device: int
    by_cloud: int
    failed: int
    waiting: int
    """Frames that wait to be answered, or are being answered."""
    reconnects: int
    """How often the source was lost after it had been found."""
    last_error: str
    """Why it was lost or failed the last time; empty: it never was."""


class SourceCounts:
    """Counts for one source; safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[FrameOutcome] = Counter()
        self._read = 0
        self._state = SourceState.STARTING
        self._reconnects = 0
        self._last_error = ""

    def read(self) -> None:
        """Count a frame that the source gave."""
        with self._lock:
            self._read += 1

    def count_outcome(self, outcome: FrameOutcome) -> None:
        """Count what became of a frame that was read."""
        with self._lock:
            self._outcomes[outcome] += 1

    def set_state(self, state: SourceState, error: str = "") -> None:
        """Take note of how the source is; `error`: why."""
        with self._lock:
            self._reconnects += (self._state, state) == (SourceState.READING, SourceState.LOST)
            self._state = state
            self._last_error = error or self._last_error

    def stats(self) -> SourceStats:
        """Return the counts so far."""
        with self._lock:
            outcomes = {outcome.value: self._outcomes[outcome] for outcome in FrameOutcome}
            return SourceStats(
                state=self._state,
                read=self._read,
                waiting=self._read - sum(outcomes.values()),
                reconnects=self._reconnects,
                last_error=self._last_error,
                **outcomes,
            )
