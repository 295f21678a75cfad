"""The edge node, which answers for images and logs every answer."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from edge import assemble
from edge.cloud.client import InferenceClient
from edge.cloud.messages import check_context
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.answer import Answer
from edge.decide.class_names import TAKE_OTHERS, unknown_classes
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.labels import labels_of
from edge.decide.policy import Mode, Policy
from edge.detect.base import Detector, Image, close_detector
from edge.device_model import load_detector
from edge.entry import ImageEntry, image_entry
from edge.errors import ClosedError, CoordinatorClosedError
from edge.log.logger import PredictionLogger
from edge.names import source_name_of
from edge.run import NodeRun, Outcome
from edge.settings import EdgeSettings
from edge.sources.counts import SourceCounts, SourceState
from edge.sources.frame import Frame, FrameSource, public_name
from edge.sources.opening import open_source
from edge.sources.pictures import PictureFiles, describe_left_out
from edge.sources.sampling import Sampling
from edge.tally import NodeStats, Tally
from servicekit.settings import SettingsError, load

if TYPE_CHECKING:
    from edge.metrics import NodeMetrics

logger = logging.getLogger(__name__)

WORKERS = 2
"""Default number of frames that `run` processes concurrently: one on the device, one elsewhere."""
_CLOSING_SECONDS = 1.0
_MAX_SOURCES = 256
"""Number of sources whose counts are kept; the oldest ended sources are removed first."""
QUEUE_SIZE = 4
"""Default number of queued frames per source in `run`: enough for a short delay of the device."""


class EdgeNode:
    """A node that answers for images and logs the answers, for any number of threads and tasks.

    Construct it after forking. Closing it closes the detector, the client and the logger as well.

    Args:
        detector: the model on the device; None: the device has none.
        client: the client of the inference service; None in mode `device` only.
        logger: the logger of the predictions.
        policy: the mode, the time budget and the limits.
        model: the model of the service to use; None: its default.
        parameters: thresholds and limits for the service; None: those of its model.
        defect_classes: names of the classes that are defects. `defect_detected` is logged as True
            for an image with such a detection, else as False; empty: it is not logged.
        context: labels of every image, for the log and the service; see `process`. None: no labels.

    Raises:
        SightlineError: INVALID_ARGUMENT: the context is malformed.
        ValueError: the mode needs a detector or a client, and there is none; or the detector's
            labels lack a class of `defect_classes` or `policy.cloud_label_map`, unless the policy
            takes other labels.

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
        context: Mapping[str, str] | None = None,
    ) -> None:
        if detector is not None and policy.mode is not Mode.CLOUD and not policy.takes_other_labels:
            unknown = unknown_classes(labels_of(detector), defect_classes, policy.cloud_label_map)
            if unknown:
                raise ValueError(f"{unknown}; {TAKE_OTHERS}")
        self._coordinator = InferenceCoordinator(
            detector, client, policy, model=model, parameters=parameters
        )
        self._detector = detector
        self._client = client
        self._logger = logger
        self._defect_classes = frozenset(defect_classes)
        self._context = check_context(context or {})
        self._tally = Tally()
        self._sources: dict[str, SourceCounts] = {}
        self._runs: WeakSet[NodeRun] = WeakSet()
        self._runs_lock = threading.Lock()
        self._metrics: NodeMetrics | None = None
        self._closed = False

    @classmethod
    def from_settings(cls, settings: EdgeSettings | None = None) -> Self:
        """Return a node that is constructed from settings.

        Args:
            settings: the settings; None: those of `SIGHTLINE_EDGE_*`, the TOML file and the
                defaults.

        Raises:
            servicekit.settings.SettingsError: a setting cannot be used.
            ValueError: a class in the settings is none of the device's model.
            vision.ModelError: the device's model cannot be used.
            ModuleNotFoundError: a setting needs a package that is not installed.
        """
        settings = settings or load(EdgeSettings, None, prog="edge")
        with ExitStack() as undo:  # closes the parts if a later one cannot be constructed
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
                context=settings.context_labels,
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
        context: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer for one image, and log it in the background.

        Args:
            image: RGB uint8 `[H, W, 3]` (not copied: do not change it meanwhile), encoded bytes, a
                path, or a Pillow image.
            image_id: name of the image in the log, 1 to 512 bytes; None or empty: a new UUID.
            captured_at: capture time in Unix seconds; None: now.
            labels: labels for the log; None: no labels.
            traceparent: W3C traceparent, passed on to the service and logged; empty: none.
            context: labels by which the image can be found again, for the log, and for the access
                log and the traces of the service: at most 16, with those of the node; keys 1 to 64
                bytes, values at most 256 bytes. None: those of the node.

        Raises:
            edge.errors.EdgeError: neither device nor cloud answered; see
                `edge.decide.coordinator.InferenceCoordinator.ask`. The failure is counted, and
                nothing is logged.
            SightlineError: INVALID_ARGUMENT: the traceparent or the context is malformed.
            ValueError: the name, the time or the labels cannot be logged.
        """
        with self._counting():
            entry = self._entry(image_id, captured_at, labels, context, traceparent)
            answer = self._coordinator.ask(
                image,
                image_id=entry.image_id,
                traceparent=traceparent,
                context=entry.context,
            )
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
        context: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer for one image, and log it in the background; see `process`."""
        with self._counting():
            entry = self._entry(image_id, captured_at, labels, context, traceparent)
            answer = await self._coordinator.aask(
                image,
                image_id=entry.image_id,
                traceparent=traceparent,
                context=entry.context,
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
        labels: Mapping[str, str] | None = None,
        workers: int = WORKERS,
        queue_size: int = QUEUE_SIZE,
    ) -> Iterator[Outcome]:
        """Yield the outcome of each frame of the sources; every answer is logged.

        The iteration ends when all sources have ended; cameras never end. Leaving the loop stops
        the reading. Outcomes are yielded in the order in which they are ready. Under load, the
        oldest frames of cameras are dropped; frames of files never are. Each prediction has the
        label `source`.

        Args:
            sources: sources, or paths, URLs and camera numbers; see `edge.sources.open_source`.
            every: process every n-th frame of sources that are not `FrameSource` objects, >= 1.
            every_seconds: process a frame every so many seconds instead, > 0; None: `every`
                applies.
            labels: further labels of every prediction; None: none.
            workers: number of frames that are processed concurrently, 1 to 1024. 1 keeps the frames
                of a source in order, which a tracker needs.
            queue_size: maximum number of queued frames per source, 1 to 1024.

        Raises:
            CoordinatorClosedError: the node is closed.
            ValueError: an argument is out of range, two sources have the same name, or the labels
                cannot be logged.
            SightlineError: INVALID_ARGUMENT: the files of a source do not exist.
            ModuleNotFoundError: a source needs OpenCV, which is not installed (extra `video`).
        """
        sampling = Sampling(every, every_seconds)
        return _closing(self._run(sources, sampling, labels, workers, queue_size))

    async def arun(
        self,
        *sources: FrameSource | Path | str,
        every: int = 1,
        every_seconds: float | None = None,
        labels: Mapping[str, str] | None = None,
        workers: int = WORKERS,
        queue_size: int = QUEUE_SIZE,
    ) -> AsyncIterator[Outcome]:
        """Yield the outcome of each frame of the sources; see `run`."""
        sampling = Sampling(every, every_seconds)
        run = self._run(sources, sampling, labels, workers, queue_size)
        loop = asyncio.get_running_loop()
        # Own threads: waiting for a camera would occupy a thread of the loop's shared executor.
        threads = ThreadPoolExecutor(2, "sightline-arun")
        try:
            while (outcome := await loop.run_in_executor(threads, next, run, None)) is not None:
                yield outcome
        finally:
            await loop.run_in_executor(threads, run.close)
            threads.shutdown(wait=False)

    @property
    def logger(self) -> PredictionLogger:
        """The logger of the predictions, which can be flushed."""
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
        """Serve the metrics for Prometheus at `http://<listen>/metrics` until the node is closed.

        Args:
            listen: host:port or [IPv6]:port; port 0 selects a free port.

        Returns:
            The address of the server, host:port.

        Raises:
            servicekit.settings.SettingsError: the server cannot listen on the address.
            ModuleNotFoundError: prometheus-client is not installed (extra `metrics`).
            ValueError: the metrics are already served.
        """
        from edge.metrics import NodeMetrics

        if self._metrics is not None:
            raise ValueError(f"the metrics are already served at {self._metrics.address}")
        try:
            metrics = NodeMetrics(listen, self.stats)
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"metrics_listen: cannot listen on {listen}: {error}") from error
        self._metrics = metrics
        return metrics.address

    def close(self) -> None:
        """Close the node, the detector (if it has a method `close`), the client and the logger.

        Runs end, after a wait of up to a second for frames in progress. Predictions that are not
        shipped within a few seconds stay in the spool for the next process.
        """
        self._closed = True
        with ExitStack() as parts:  # closes every part, even if closing another one raises
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
        labels: Mapping[str, str] | None,
        workers: int,
        queue_size: int,
    ) -> NodeRun:
        if self._closed:
            raise CoordinatorClosedError
        opened = [
            _opened(source, sampling) if isinstance(source, str | Path) else source
            for source in sources
        ]
        names = [public_name(source) for source in opened]
        if not names or len(set(names)) < len(names):
            rule = "sources must be at least one, and have different names"
            raise ValueError(f"{rule}, got {names}")
        with self._runs_lock:
            counts = {
                source: self._sources.get(name) or SourceCounts()
                for source, name in zip(opened, names, strict=True)
            }
            answer = partial(self._process_frame, image_entry("run", labels=labels).labels)
            run = NodeRun(counts, answer, workers=workers, queue_size=queue_size)
            self._runs.add(run)
            self._sources.update(zip(names, counts.values(), strict=True))
            ended = [n for n, c in self._sources.items() if c.stats().state is SourceState.ENDED]
            for name in ended[: max(len(self._sources) - _MAX_SOURCES, 0)]:
                del self._sources[name]
        return run

    def _process_frame(self, labels: Mapping[str, str], source: str, frame: Frame) -> Answer:
        labels = {**labels, "source": source_name_of(source)}
        return self.process(frame.image, frame.image_id, frame.captured_at, labels)

    def _entry(
        self,
        image_id: str | None,
        captured_at: float | None,
        labels: Mapping[str, str] | None,
        context: Mapping[str, str] | None,
        traceparent: str,
    ) -> ImageEntry:
        whole = {**self._context, **(context or {})}
        return image_entry(image_id, captured_at, labels, whole, traceparent)

    def _log(self, entry: ImageEntry, answer: Answer) -> None:
        try:
            self._logger.log(entry.prediction(answer, is_defect=self._verdict(answer)))
        except ClosedError as error:
            raise CoordinatorClosedError from error
        self._tally.answered(answer)
        if self._metrics is not None:
            self._metrics.answered(answer)

    def _verdict(self, answer: Answer) -> bool | None:
        if not self._defect_classes:
            return None
        return any(detection.class_name in self._defect_classes for detection in answer.detections)


def _opened(place: Path | str, sampling: Sampling) -> FrameSource:
    source = open_source(place, sampling)
    if isinstance(source, PictureFiles) and source.left_out:
        logger.warning("%s: skipped %s", source.name, describe_left_out(source.left_out))
    return source


def _closing(run: NodeRun) -> Iterator[Outcome]:
    """Yield the outcomes of a run, and close the run when the loop over them is left."""
    try:
        yield from run
    finally:
        run.close()
