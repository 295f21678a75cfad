"""One run of a node over its sources: worker threads, and an iterator over the outcomes."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edge.decide.answer import Answer
from edge.records import Source
from edge.sources.counts import FrameOutcome, SourceCounts
from edge.sources.feed import Feed
from edge.sources.frame import Frame, FrameSource, public_name


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one frame: its answer or its error.

    Attributes:
        source: name of the frame's source.
        frame: the frame.
        answer: the answer, which is logged; None: there is none.
        error: the error; None: there is an answer.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     for outcome in node.run("photo.jpg"):
        ...         print(outcome.source, outcome.error or len(outcome.answer.detections))
        photo.jpg 3
    """

    source: str
    frame: Frame
    answer: Answer | None
    error: Exception | None


class NodeRun(Iterator[Outcome]):
    """An iterator over the outcomes of frames. Thread-safe; it must be closed.

    The first `next` starts the reading. Reading ahead is bounded: if outcomes are not fetched,
    frames wait in their queues, and live sources drop their oldest frames.

    Args:
        sources: the sources and their counters.
        answer: returns the answer for one frame of the named source, and logs it.
        workers: number of frames that are processed concurrently, 1 to 1024. With 1, the frames of
            a source stay in order.
        queue_size: maximum number of queued frames per source, 1 to 1024.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        sources: Mapping[FrameSource, SourceCounts],
        answer: Callable[[str, Frame], Answer],
        *,
        workers: int,
        queue_size: int,
    ) -> None:
        for name, value in (("workers", workers), ("queue_size", queue_size)):
            if not 1 <= value <= 1024:
                raise ValueError(f"{name} must be 1 to 1024, got {value}")
        self._counts = dict(sources)
        self._answer = answer
        self._ready: deque[Outcome] = deque()
        self._ready_limit = workers
        self._working = workers
        self._closed = False
        self._changed = threading.Condition()
        self._queue_size = queue_size
        self._feed: Feed | None = None
        self._workers = [
            threading.Thread(target=self._work, name=f"sightline-run-{number}", daemon=True)
            for number in range(workers)
        ]

    def __iter__(self) -> "NodeRun":
        return self

    def __next__(self) -> Outcome:
        with self._changed:
            if self._feed is None and not self._closed:
                self._start()
            self._changed.wait_for(lambda: self._ready or not self._working or self._closed)
            if not self._ready:
                raise StopIteration
            outcome = self._ready.popleft()
            self._changed.notify_all()
            return outcome

    def close(self, timeout: float = 1.0) -> None:
        """Stop the reading, and wait for frames in progress, which are logged but not returned.

        Args:
            timeout: seconds to wait at most. Frames that take longer end in the background.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._feed is None:
            return
        self._feed.close(timeout)
        for worker in self._workers:
            worker.join(max(deadline - time.monotonic(), 0.0))

    def _start(self) -> None:
        """Start the threads. A run that is never iterated over starts none, so leaks none."""
        self._feed = Feed(self._counts, self._queue_size)
        for worker in self._workers:
            worker.start()

    def _work(self) -> None:
        try:
            while self._feed is not None and (item := self._feed.next_frame()) is not None:
                source, frame = item
                self._put(self._outcome(source, frame))
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _outcome(self, source: FrameSource, frame: Frame) -> Outcome:
        counts, name = self._counts[source], public_name(source)
        try:
            answer = self._answer(name, frame)
        except BaseException as raised:  # noqa: BLE001 - the outcome carries every error
            counts.count_outcome(FrameOutcome.FAILED)
            error = raised if isinstance(raised, Exception) else RuntimeError(repr(raised))
            return Outcome(name, frame, None, error)
        counts.count_outcome(
            FrameOutcome.BY_DEVICE if answer.source is Source.DEVICE else FrameOutcome.BY_CLOUD
        )
        return Outcome(name, frame, answer, None)

    def _put(self, outcome: Outcome) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ready_limit)
            if not self._closed:
                self._ready.append(outcome)
            self._changed.notify_all()
