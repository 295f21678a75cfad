"""Frames of several sources at once: a thread reads each, a bounded queue holds what waits.

A live source's oldest frame goes when its queue is full; any other source waits for room.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.sources.counts import FrameOutcome, SourceCounts, SourceState
from edge.sources.frame import Frame, FrameSource

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _SourceQueue:
    """One source, the frames of it that wait, and whether more may come."""

    source: FrameSource
    counts: SourceCounts
    waiting: deque[Frame] = field(default_factory=deque)
    ended: bool = False


class Feed:
    """Reads sources until they end or the feed is closed.

    Args:
        sources: what to read, with where to count what becomes of the frames.
        queue_size: frames of one source that may wait, >= 1.
    """

    def __init__(self, sources: Mapping[FrameSource, SourceCounts], queue_size: int) -> None:
        self._queues = [_SourceQueue(source, counts) for source, counts in sources.items()]
        self._queue_size = queue_size
        self._next = 0  # whose turn it is
        self._closed = False
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(
                target=self._read,
                args=(queue,),
                name=f"sightline-{queue.source.name}",
                daemon=True,
            )
            for queue in self._queues
        ]
        for reader in self._readers:
            reader.start()

    def take(self) -> tuple[FrameSource, Frame] | None:
        """Return the next frame, each source in turn; wait for one. None: there are no more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._ready() is not None or self._all_ended()
            )
            ready = self._ready()
            if ready is None or self._closed:
                return None
            queue = self._queues[ready]
            self._next = (ready + 1) % len(self._queues)
            frame = queue.waiting.popleft()
            self._changed.notify_all()
            return queue.source, frame

    def close(self, timeout: float = 1.0) -> None:
        """Want no more frames; those that wait are counted as dropped.

        Args:
            timeout: seconds to wait for all readers; a camera that hangs is left to itself.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for queue in self._queues:
                if not queue.ended:  # a camera may take its time to notice
                    queue.counts.set_state(SourceState.ENDED)
                while queue.waiting:
                    queue.waiting.popleft()
                    queue.counts.count_outcome(FrameOutcome.DROPPED)
            self._changed.notify_all()
        for reader in self._readers:
            reader.join(max(deadline - time.monotonic(), 0.0))

    def _ready(self) -> int | None:
        """The next queue that has a frame, beginning with the one whose turn it is."""
        count = len(self._queues)
        turns = ((self._next + step) % count for step in range(count))
        return next((index for index in turns if self._queues[index].waiting), None)

    def _all_ended(self) -> bool:
        return all(queue.ended for queue in self._queues)

    def _read(self, queue: _SourceQueue) -> None:
        """Read one source to its end; the body of its thread."""
        end, error = SourceState.ENDED, ""
        try:
            for frame in queue.source.frames(_FeedMonitor(self, queue.counts)):
                queue.counts.read()
                if not self._put(queue, frame):
                    break
        except BaseException as failed:  # noqa: BLE001 - a source of the user's may raise anything
            if not self._closed:
                end, error = SourceState.FAILED, str(failed) or type(failed).__name__
                logger.warning("source %s: cannot be read (any more): %s", queue.source.name, error)
        with self._changed:
            queue.counts.set_state(end, error)
            queue.ended = True
            self._changed.notify_all()

    def _put(self, queue: _SourceQueue, frame: Frame) -> bool:
        """Queue a frame; False: no more are wanted, and this one is dropped."""
        with self._changed:
            if queue.source.live:
                if len(queue.waiting) >= self._queue_size:
                    queue.waiting.popleft()
                    queue.counts.count_outcome(FrameOutcome.DROPPED)
            else:
                self._changed.wait_for(
                    lambda: self._closed or len(queue.waiting) < self._queue_size
                )
            if self._closed:
                queue.counts.count_outcome(FrameOutcome.DROPPED)
                return False
            queue.waiting.append(frame)
            self._changed.notify_all()
            return True

    def wait_closed(self, seconds: float) -> bool:
        """Wait until the feed is closed; False: it was not in time."""
        if seconds <= 0:
            return self._closed
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)


class _FeedMonitor:
    """The feed, as one of its sources sees it (`edge.sources.frame.SourceMonitor`)."""

    def __init__(self, feed: Feed, counts: SourceCounts) -> None:
        self._feed = feed
        self._counts = counts

    def wait(self, seconds: float) -> bool:
        return self._feed.wait_closed(seconds)

    def skipped(self) -> None:
        self._counts.read()
        self._counts.count_outcome(FrameOutcome.SKIPPED)

    def lost(self, error: str) -> None:
        self._counts.set_state(SourceState.LOST, error)

    def found(self) -> None:
        self._counts.set_state(SourceState.READING)
