"""An edge node: an image in, an answer out, and every answer in the log."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from edge import assemble
from edge.cloud.client import InferenceClient
from edge.cloud.messages import trace_id_of
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.answer import Answer
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Policy
from edge.detect.base import Detector, Image, close_detector
from edge.device_model import load_detector
from edge.errors import ClosedError, CoordinatorClosedError
from edge.log.logger import PredictionLogger
from edge.records import Prediction
from edge.run import NodeRun, Outcome
from edge.settings import EdgeSettings
from edge.sources.counts import SourceCounts, SourceState
from edge.sources.frame import Frame, FrameSource
from edge.sources.opening import open_source
from edge.sources.sampling import Sampling
from edge.tally import NodeStats, Tally
from servicekit.settings import SettingsError, load

if TYPE_CHECKING:
    from edge.metrics import NodeMetrics

WORKERS = 2
"""Frames that `run` answers at once: one on the device, another on its way or with the cloud."""
_CLOSING_SECONDS = 1.0
_MOST_SOURCES = 256
"""Sources that are remembered: of a node that is given file after file, the last ones."""
QUEUE_SIZE = 4
"""Frames of each source that wait in `run`: enough for a hiccup, and never older than that."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the log is told about an image besides its answer."""

    image_id: str
    captured_at: float
    labels: Mapping[str, str]
    trace_id: str


class EdgeNode:
    """Answers for images and logs the answers; from any number of threads and asyncio tasks.

    Make it after forking. Closing it closes the detector, the client and the logger, too.

    Args:
        detector: the model on the device; None: the device has none.
        client: the inference service; None: only in mode `device`.
        logger: where predictions go.
        policy: who may answer, and how long it may take.
        model: which model of the service should answer; None: its default.
        parameters: how the service makes its answers; None: its model's own settings.
        defect_classes: names of classes that are defects: an image with one of them is logged
            with the verdict `defect_detected`, one without with its opposite; empty: no verdict.

    Raises:
        ValueError: the mode needs a detector or a client that is not there.

    Example:
        >>> from sightline import DetectorResult, EdgeNode, Mode, Policy, PredictionLogger
        >>> class Blank:
        ...     name, version = "blank", "1"
        ...     def detect(self, image):
        ...         return DetectorResult((), 640, 480, self.name, self.version)
        >>> logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir="spool")
        >>> with EdgeNode(Blank(), None, logger, Policy(mode=Mode.DEVICE)) as node:
        ...     answer = node.process("photo.jpg", labels={"line": "4"})
        ...     print(answer.source, node.logger.flush(timeout=5.0))
        device True
    """

    def __init__(
        self,
        detector: Detector | None,
        client: InferenceClient | None,
        logger: PredictionLogger,
        policy: Policy,
        *,
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
        defect_classes: Collection[str] = (),
    ) -> None:
        self._coordinator = InferenceCoordinator(
            detector, client, policy, model=model, parameters=parameters
        )
        self._detector = detector
        self._client = client
        self._logger = logger
        self._defect_classes = frozenset(defect_classes)
        self._tally = Tally()
        self._sources: dict[str, SourceCounts] = {}
        self._runs: WeakSet[NodeRun] = WeakSet()
        self._runs_lock = threading.Lock()
        self._metrics: NodeMetrics | None = None
        self._closed = False

    @classmethod
    def from_settings(cls, settings: EdgeSettings | None = None) -> Self:
        """Return a node made of what the settings name.

        Args:
            settings: None: read from `SIGHTLINE_EDGE_*`, the TOML file and the defaults.

        Raises:
            servicekit.settings.SettingsError: a setting cannot be used.
            vision.ModelError: the device's model cannot be used.
            ModuleNotFoundError: a setting needs a package that is not installed.
        """
        settings = settings or load(EdgeSettings, None, prog="edge")
        with ExitStack() as undo:  # what was opened, if a later part cannot be
            detector = load_detector(settings)
            if detector is not None:
                undo.callback(close_detector, detector)
            client = assemble.client(settings)
            if client is not None:
                undo.callback(client.close)
            logger = PredictionLogger.from_settings(settings)
            undo.callback(logger.close)
            node = cls(
                detector,
                client,
                logger,
                assemble.policy(settings),
                model=assemble.cloud_model(settings),
                parameters=assemble.parameters(settings),
                defect_classes=settings.defect_classes,
            )
            undo.pop_all()
            undo.callback(node.close)
            if settings.metrics_listen:
                node.serve_metrics(settings.metrics_listen)
            undo.pop_all()
        return node

    def process(
        self,
        image: Image,
        image_id: str | None = None,
        captured_at: float | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        traceparent: str = "",
    ) -> Answer:
        """Return the answer for one image, and logs it in the background.

        Args:
            image: RGB uint8 `[H, W, 3]` (not copied: leave it as it is meanwhile), encoded bytes,
                a path, or Pillow's image.
            image_id: its name in the log, 1 to 512 bytes; None or empty: a new UUID.
            captured_at: when it was taken, in Unix seconds; None: now.
            labels: free labels for the log; None: none.
            traceparent: W3C traceparent, passed on to the service and logged; empty: none.

        Raises:
            edge.errors.EdgeError: nobody answered; see
                `edge.decide.coordinator.InferenceCoordinator.ask`. The failure is counted; there is
                no prediction to log.
            SightlineError: INVALID_ARGUMENT: not a traceparent.
            ValueError: the name, the time or the labels cannot be logged.
        """
        with self._counting():
            entry = _entry(image_id, captured_at, labels, traceparent)
            answer = self._coordinator.ask(image, image_id=entry.image_id, traceparent=traceparent)
            self._log(entry, answer)
        return answer

    async def aprocess(
        self,
        image: Image,
        image_id: str | None = None,
        captured_at: float | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        traceparent: str = "",
    ) -> Answer:
        """Return the answer for one image, and logs it in the background; see `process`."""
        with self._counting():
            entry = _entry(image_id, captured_at, labels, traceparent)
            answer = await self._coordinator.aask(
                image, image_id=entry.image_id, traceparent=traceparent
            )
            if self._logger.blocks:
                await asyncio.to_thread(self._log, entry, answer)
            else:
                self._log(entry, answer)
        return answer

    def run(
        self,
        *sources: FrameSource | Path | str,
        every: int = 1,
        every_seconds: float | None = None,
        workers: int = WORKERS,
        queue_size: int = QUEUE_SIZE,
    ) -> Iterator[Outcome]:
        """Yield what becomes of each frame of the sources; every answer is logged.

        Ends when all sources have ended, which cameras never do; leaving the loop ends the reading.
        Outcomes come as they are ready. Frames of cameras are dropped, oldest first, when there is
        no time for them; those of files never are. Each prediction has the label `source`.

        Args:
            sources: what to read: see `edge.sources.open_source` for words and paths.
            every: take every n-th frame of what words and paths name, >= 1.
            every_seconds: take a frame every so many seconds in place of that, > 0; None: `every`.
            workers: frames that are answered at once, 1 to 1024. 1 keeps a source's frames in
                order, which a tracker needs.
            queue_size: frames of each source that may wait, 1 to 1024.

        Raises:
            CoordinatorClosedError: the node is closed.
            ValueError: a number is out of its range, or two sources have one name.
            SightlineError: INVALID_ARGUMENT: a source's files are not there.
            ModuleNotFoundError: a source needs OpenCV (the extra `video`).
        """
        sampling = Sampling(every, every_seconds)
        return _closing(self._run(sources, sampling, workers, queue_size))

    async def arun(
        self,
        *sources: FrameSource | Path | str,
        every: int = 1,
        every_seconds: float | None = None,
        workers: int = WORKERS,
        queue_size: int = QUEUE_SIZE,
    ) -> AsyncIterator[Outcome]:
        """Yield what becomes of each frame of the sources; see `run`."""
        sampling = Sampling(every, every_seconds)
        run = self._run(sources, sampling, workers, queue_size)
        loop = asyncio.get_running_loop()
        # Threads of its own: a quiet camera would hold one of the few that all tasks share.
        threads = ThreadPoolExecutor(2, "sightline-arun")
        try:
            while (outcome := await loop.run_in_executor(threads, next, run, None)) is not None:
                yield outcome
        finally:
            await loop.run_in_executor(threads, run.close)
            threads.shutdown(wait=False)

    @property
    def logger(self) -> PredictionLogger:
        """Where predictions go; to flush it, for instance."""
        return self._logger

    def stats(self) -> NodeStats:
        """Return the counts so far."""
        with self._runs_lock:
            sources = dict(self._sources)
        return NodeStats(
            pictures=self._tally.counts(),
            sources={name: counts.stats() for name, counts in sources.items()},
            coordinator=self._coordinator.stats(),
            logger=self._logger.stats(),
        )

    def serve_metrics(self, listen: str) -> str:
        """Serve the statistics for Prometheus at `http://<listen>/metrics` until closed.

        Args:
            listen: host:port or [IPv6]:port; port 0: any free one.

        Returns:
            The address that is listened on, host:port.

        Raises:
            servicekit.settings.SettingsError: the address cannot be listened on.
            ModuleNotFoundError: prometheus-client is not installed (the extra `metrics`).
            ValueError: they are served already.
        """
        from edge.metrics import NodeMetrics

        if self._metrics is not None:
            raise ValueError(f"metrics are served already, at {self._metrics.address}")
        try:
            metrics = NodeMetrics(listen, self.stats)
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"metrics_listen: cannot listen on {listen}: {error}") from error
        self._metrics = metrics
        return metrics.address

    def close(self) -> None:
        """Close the node, the detector (where it has a method `close`), the client and the logger.

        Runs end; frames in hand are waited for up to a second.

        What is not shipped within a few seconds stays in the spool, for the next process.
        """
        self._closed = True
        with ExitStack() as parts:  # each is closed, whatever another one's closing raises
            parts.callback(self._logger.close)
            if self._client is not None:
                parts.callback(self._client.close)
            if self._detector is not None:
                parts.callback(close_detector, self._detector)
            parts.callback(self._coordinator.close)
            if self._metrics is not None:
                parts.callback(self._metrics.close)
            parts.callback(self._close_runs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.close)

    def _close_runs(self) -> None:
        with self._runs_lock:
            runs = list(self._runs)
        for run in runs:
            run.close(0.0)
        deadline = time.monotonic() + _CLOSING_SECONDS
        for run in runs:
            run.close(max(deadline - time.monotonic(), 0.0))

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tally.failed(error)
            raise

    def _run(
        self,
        sources: tuple[FrameSource | Path | str, ...],
        sampling: Sampling,
        workers: int,
        queue_size: int,
    ) -> NodeRun:
        if self._closed:
            raise CoordinatorClosedError
        opened = [
            open_source(one, sampling) if isinstance(one, str | Path) else one for one in sources
        ]
        names = [one.name for one in opened]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sources must be at least one, and have different names, are {names}")
        with self._runs_lock:
            counts = {one: self._sources.get(one.name) or SourceCounts() for one in opened}
            run = NodeRun(counts, self._process_frame, workers=workers, queue_size=queue_size)
            self._runs.add(run)
            self._sources.update({one.name: count for one, count in counts.items()})
            ended = [n for n, c in self._sources.items() if c.stats().state is SourceState.ENDED]
            for name in ended[: max(len(self._sources) - _MOST_SOURCES, 0)]:
                del self._sources[name]
        return run

    def _process_frame(self, source: str, frame: Frame) -> Answer:
        return self.process(frame.image, frame.image_id, frame.captured_at, {"source": source})

    def _log(self, entry: _Entry, answer: Answer) -> None:
        prediction = Prediction(
            entry.image_id,
            answer.model_name,
            model_version=answer.model_version,
            image_width=answer.image_width,
            image_height=answer.image_height,
            source=answer.source,
            cloud_reason=answer.cloud_reason,
            captured_at=entry.captured_at,
            inference_seconds=answer.attempt.seconds,
            detections=answer.detections,
            defect_detected=self._verdict(answer),
            labels=entry.labels,
            trace_id=entry.trace_id,
        )
        try:
            self._logger.log(prediction)
        except ClosedError as error:
            raise CoordinatorClosedError from error
        self._tally.answered(answer)
        if self._metrics is not None:
            self._metrics.answered(answer)

    def _verdict(self, answer: Answer) -> bool | None:
        if not self._defect_classes:
            return None
        return any(found.class_name in self._defect_classes for found in answer.detections)


def _entry(
    image_id: str | None,
    captured_at: float | None,
    labels: Mapping[str, str] | None,
    traceparent: str,
) -> _Entry:
    entry = _Entry(
        image_id=image_id or str(uuid.uuid4()),
        captured_at=time.time() if captured_at is None else captured_at,
        labels=dict(labels or {}),
        trace_id=trace_id_of(traceparent),
    )
    if image_id or labels or captured_at is not None:
        # What cannot be logged is refused before anybody works for it.
        Prediction(entry.image_id, "model", captured_at=entry.captured_at, labels=entry.labels)
    return entry


def _closing(run: NodeRun) -> Iterator[Outcome]:
    """The outcomes of a run that ends with the loop over it, however that is left."""
    try:
        yield from run
    finally:
        run.close()
