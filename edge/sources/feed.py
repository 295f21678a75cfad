"""Concurrent reading of several sources: a thread and a bounded queue for each.

If the queue of a live source is full, its oldest frame is dropped. Other sources wait until their
queue has space.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.sources.counts import FrameOutcome, SourceCounts, SourceState
from edge.sources.frame import Frame, FrameSource, public_name
from servicekit.addresses import without_secrets

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _SourceQueue:
    """The queue of one source; `ended` is set when its reader has ended."""

    source: FrameSource
    counts: SourceCounts
    waiting: deque[Frame] = field(default_factory=deque)
    ended: bool = False


class Feed:
    """A reader of several sources, until they end or it is closed.

    Args:
        sources: the sources and their counters.
        queue_size: maximum number of queued frames per source, >= 1.
    """

    def __init__(self, sources: Mapping[FrameSource, SourceCounts], queue_size: int) -> None:
        self._queues = [_SourceQueue(source, counts) for source, counts in sources.items()]
        self._queue_size = queue_size
        self._next = 0  # index of the queue to serve first
        self._closed = False
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(
                target=self._read,
                args=(queue,),
                name=f"sightline-{public_name(queue.source)}",
                daemon=True,
            )
            for queue in self._queues
        ]
        for reader in self._readers:
            reader.start()

    def next_frame(self) -> tuple[FrameSource, Frame] | None:
        """Wait for the next frame, round-robin over the sources. None: there are no more frames."""
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
        """Stop the reading. Queued frames are counted as dropped.

        Args:
            timeout: seconds to wait for the reader threads. The thread of a camera that hangs keeps
                running.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for queue in self._queues:
                if not queue.ended:  # its reader may notice the end of the feed only later
                    queue.counts.set_state(SourceState.ENDED)
                while queue.waiting:
                    queue.waiting.popleft()
                    queue.counts.stop()
            self._changed.notify_all()
        for reader in self._readers:
            reader.join(max(deadline - time.monotonic(), 0.0))

    def _ready(self) -> int | None:
        """Return the index of the next queue that has a frame, round-robin; None: none has."""
        count = len(self._queues)
        turns = ((self._next + step) % count for step in range(count))
        return next((index for index in turns if self._queues[index].waiting), None)

    def _all_ended(self) -> bool:
        return all(queue.ended for queue in self._queues)

    def _read(self, queue: _SourceQueue) -> None:
        """Read one source to its end; the body of its thread."""
        end, error = SourceState.ENDED, ""
        try:
            monitor = _FeedMonitor(self, queue.counts, queue.source)
            for frame in queue.source.frames(monitor):
                queue.counts.read()
                if not self._put(queue, frame):
                    break
        except BaseException as raised:  # noqa: BLE001 - a user's source may raise anything
            if not self._closed:
                error = without_secrets(str(raised), queue.source.name) or type(raised).__name__
                end = SourceState.FAILED
                logger.warning("source %s cannot be read: %s", public_name(queue.source), error)
        with self._changed:
            queue.counts.set_state(end, error)
            queue.ended = True
            self._changed.notify_all()

    def _put(self, queue: _SourceQueue, frame: Frame) -> bool:
        """Queue a frame; return False if the feed is closed and the frame was dropped."""
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
                queue.counts.stop()
                return False
            queue.waiting.append(frame)
            self._changed.notify_all()
            return True

    def wait_closed(self, seconds: float) -> bool:
        """Wait until the feed is closed; return False if it is still open after `seconds`."""
        if seconds <= 0:
            return self._closed
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)


class _FeedMonitor:
    """The `SourceMonitor` that a feed passes to one of its sources."""

    def __init__(self, feed: Feed, counts: SourceCounts, source: FrameSource) -> None:
        self._feed = feed
        self._counts = counts
        self._source = source
        self._name = public_name(source)

    def wait(self, seconds: float) -> bool:
        return self._feed.wait_closed(seconds)

    def skipped(self) -> None:
        self._counts.read()
        self._counts.count_outcome(FrameOutcome.SKIPPED)

    def damaged(self, count: int) -> None:
        if not self._counts.stats().damaged:  # not for every one of a damaged file
            logger.warning("source %s has a damaged frame, reading on", self._name)
        self._counts.damage(count)

    def missing(self, count: int) -> None:
        self._counts.miss(count)

    def lost(self, error: str) -> None:
        error = without_secrets(error, self._source.name)
        is_news = self._counts.stats().state is not SourceState.LOST
        self._counts.set_state(SourceState.LOST, error)
        if is_news:  # not for every try to reconnect
            how = "not reachable" if self._counts.stats().is_unreachable else "lost"
            logger.warning("source %s is %s, trying again: %s", self._name, how, error)

    def found(self) -> None:
        self._counts.set_state(SourceState.READING)
