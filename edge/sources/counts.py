"""Counters of the frames of each source, and its state."""

import threading
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class SourceState(StrEnum):
    """The state of a source."""

    STARTING = "starting"
    """No frame has been read yet."""
    READING = "reading"
    """Frames are being read."""
    LOST = "lost"
    """The connection is lost; the source is trying to reconnect."""
    ENDED = "ended"
    """There are no more frames, or the reading was stopped."""
    FAILED = "failed"
    """The source cannot be read and does not reconnect."""


class FrameOutcome(StrEnum):
    """The outcome of one frame, as it is counted."""

    SKIPPED = "skipped"
    """Not selected by the sampling."""
    DROPPED = "dropped"
    """Removed from a full queue, or still in the queue when the reading was stopped."""
    BY_DEVICE = "by_device"
    """Answered by the device."""
    BY_CLOUD = "by_cloud"
    """Answered by the cloud."""
    FAILED = "failed"
    """Answered neither by the device nor by the cloud."""


@dataclass(frozen=True, slots=True)
class SourceStats:
    """The counts of one source so far.

    `read` is the sum of the counts from `skipped` to `waiting`; see `FrameOutcome` for those.
    """

    state: SourceState
    """The current state of the source."""
    read: int
    """Frames read from the source."""
    skipped: int
    dropped: int
    by_device: int
    by_cloud: int
    failed: int
    waiting: int
    """Frames that are queued or being processed."""
    reconnects: int
    """Number of times the source was lost after it had been connected."""
    last_error: str
    """The latest reason why it was lost, failed or is incomplete; empty: there was none."""
    stopped: int = 0
    """Those of `dropped` that were read and not answered when the reading was stopped."""
    damaged: int = 0
    """Frames that cannot be decoded; they are not in `read`."""
    missing: int = 0
    """Frames that a file lists, and that were neither read nor found damaged.

    Some containers hide damaged frames in this way; others list frames that an editor has cut out,
    or only an estimate of their number."""

    @property
    def is_unreachable(self) -> bool:
        """True if it was never connected, in spite of at least one try."""
        return bool(self.last_error) and not self.read and not self.reconnects


class SourceCounts:
    """Counters of one source. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[FrameOutcome] = Counter()
        self._read = 0
        self._state = SourceState.STARTING
        self._reconnects = 0
        self._stopped = 0
        self._damaged = 0
        self._missing = 0
        self._last_error = ""

    def read(self) -> None:
        """Count a frame that was read from the source."""
        with self._lock:
            self._read += 1

    def count_outcome(self, outcome: FrameOutcome) -> None:
        """Count the outcome of a frame that was read."""
        with self._lock:
            self._outcomes[outcome] += 1

    def stop(self) -> None:
        """Count a frame that is dropped because the reading was stopped."""
        with self._lock:
            self._outcomes[FrameOutcome.DROPPED] += 1
            self._stopped += 1

    def damage(self, count: int) -> None:
        """Count frames that cannot be decoded."""
        with self._lock:
            self._damaged += count

    def miss(self, count: int) -> None:
        """Count frames that a file lists and does not have."""
        with self._lock:
            self._missing += count

    def set_state(self, state: SourceState, error: str = "") -> None:
        """Set the source's state, and the error that led to it."""
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
                last_error=self._last_error or self._incompleteness(),
                stopped=self._stopped,
                damaged=self._damaged,
                missing=self._missing,
                **outcomes,
            )

    def _incompleteness(self) -> str:
        parts = []
        if self._damaged:
            parts.append(f"{_frames(self._damaged)} cannot be decoded")
        if self._missing:
            parts.append(f"{_frames(self._missing)} that the file lists cannot be found")
        return ", ".join(parts)


def _frames(count: int) -> str:
    return f"{count:,} frame{'' if count == 1 else 's'}"
