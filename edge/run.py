"""Answers for the frames of sources, several at once, in the order in which they are ready."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edge.decide.answer import Answer
from edge.records import Source
from edge.sources.counts import FrameOutcome, SourceCounts
from edge.sources.feed import Feed
from edge.sources.frame import Frame, FrameSource


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame.

    Attributes:
        source: name of the frame's source.
        frame: the frame.
        answer: the answer, which is logged; None: there is none.
        error: why there is no answer; None: there is one.

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
    """Frames under way; iterate over it from any thread, and close it. The first `next` starts it.

    Nothing is read ahead without bound: when outcomes are not fetched, frames wait, and those of
    live sources are dropped, oldest first.

    Args:
        sources: what to read, with where to count what becomes of the frames.
        answer: answers for one frame of the source so named, and logs the answer.
        workers: frames that are answered at once, >= 1. With 1, a source's frames stay in order.
        queue_size: frames of each source that may wait, >= 1.

    Raises:
        ValueError: a number is out of its range.
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
                raise ValueError(f"{name} must be 1 to 1024, is {value}")
        self._counts = dict(sources)
        self._answer = answer
        self._ready: deque[Outcome] = deque()
        self._room = workers
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
        """Want no more frames, and wait for those in hand; they are logged, but not given out.

        Args:
            timeout: seconds to wait at most; what takes longer ends by itself.
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
        """Begin to read: not before somebody asks, who can then also be relied on to close."""
        self._feed = Feed(self._counts, self._queue_size)
        for worker in self._workers:
            worker.start()

    def _work(self) -> None:
        try:
            while self._feed is not None and (taken := self._feed.take()) is not None:
                source, frame = taken
                self._give(self._outcome(source, frame))
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _outcome(self, source: FrameSource, frame: Frame) -> Outcome:
        counts = self._counts[source]
        try:
            answer = self._answer(source.name, frame)
        except BaseException as error:  # noqa: BLE001 - it is the frame's, and goes to who asked for it
            counts.count_outcome(FrameOutcome.FAILED)
            told = error if isinstance(error, Exception) else RuntimeError(repr(error))
            return Outcome(source.name, frame, None, told)
        counts.count_outcome(
            FrameOutcome.BY_DEVICE if answer.source is Source.DEVICE else FrameOutcome.BY_CLOUD
        )
        return Outcome(source.name, frame, answer, None)

    def _give(self, outcome: Outcome) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._room)
            if not self._closed:
                self._ready.append(outcome)
            self._changed.notify_all()
