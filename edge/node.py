"""An edge node: a picture in, an answer out, and every answer in the log."""

import asyncio
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edge import assemble
from edge.cloud.client import InferenceClient
from edge.cloud.messages import trace_id_of
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.answer import Answer, Policy
from edge.decide.coordinator import InferenceCoordinator
from edge.detect.base import Detector, Image
from edge.log.logger import LoggerStats, PredictionLogger
from edge.records import Prediction
from edge.settings import EdgeSettings
from edge.tally import Counts, Tally
from servicekit.settings import load


@dataclass(frozen=True, slots=True)
class NodeStats:
    """What became of a node's pictures, and of what it logged."""

    pictures: Counts
    logger: LoggerStats


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the log is told about a picture besides its answer."""

    image_id: str
    captured_at: float
    labels: Mapping[str, str]
    trace_id: str


class EdgeNode:
    """Answers for pictures and logs the answers; from any number of threads and asyncio tasks.

    Make it after forking. Closing it closes the client and the logger, too.

    Args:
        detector: the model on the device; None: the device has none.
        client: the inference service; None: only in mode `device`.
        logger: where predictions go.
        policy: who may answer, and how long it may take.
        model: which model of the service should answer; None: its default.
        parameters: how the service makes its answers; None: its model's own settings.
        defect_classes: names of classes that are defects: a picture with one of them is logged
            with the verdict `defect_detected`, one without with its opposite; empty: no verdict.

    Raises:
        ValueError: the mode needs a detector or a client that is not there.
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
        self._client = client
        self._logger = logger
        self._defect_classes = frozenset(defect_classes)
        self._tally = Tally()

    @classmethod
    def from_settings(cls, settings: EdgeSettings | None = None) -> Self:
        """Returns a node made of what the settings name.

        Args:
            settings: None: read from `SIGHTLINE_EDGE_*`, the TOML file and the defaults.

        Raises:
            servicekit.settings.SettingsError: a setting cannot be used.
            servicekit.vision.ModelError: the device's model cannot be used.
        """
        settings = settings or load(EdgeSettings, None, prog="edge")
        detector, client = assemble.detector(settings), assemble.client(settings)
        return cls(
            detector,
            client,
            PredictionLogger.from_settings(settings),
            assemble.policy(settings),
            model=assemble.cloud_model(settings),
            parameters=assemble.parameters(settings),
            defect_classes=settings.defect_classes,
        )

    def process(
        self,
        image: Image,
        image_id: str | None = None,
        captured_at: float | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        traceparent: str = "",
    ) -> Answer:
        """Returns the answer for one picture, and logs it in the background.

        Args:
            image: RGB uint8 `[H, W, 3]` (not copied: leave it as it is meanwhile), encoded bytes,
                a path, or Pillow's picture.
            image_id: its name in the log, 1 to 512 bytes; None or empty: a new UUID.
            captured_at: when it was taken, in Unix seconds; None: now.
            labels: free labels for the log; None: none.
            traceparent: W3C traceparent, passed on to the service and logged; empty: none.

        Raises:
            Exception: nobody answered; see `edge.decide.coordinator.InferenceCoordinator.ask`. The
                failure is counted; there is no prediction to log.
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
        """Returns the answer for one picture, and logs it in the background; see `process`."""
        with self._counting():
            entry = _entry(image_id, captured_at, labels, traceparent)
            answer = await self._coordinator.aask(
                image, image_id=entry.image_id, traceparent=traceparent
            )
        self._log(entry, answer)
        return answer

    @property
    def logger(self) -> PredictionLogger:
        """Where predictions go; to flush it, for instance."""
        return self._logger

    def stats(self) -> NodeStats:
        """Returns the counts so far."""
        return NodeStats(self._tally.counts(), self._logger.stats())

    def close(self) -> None:
        """Closes the node, the client and the logger.

        What is not shipped within a few seconds stays in the spool, for the next process.
        """
        self._coordinator.close()
        if self._client is not None:
            self._client.close()
        self._logger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tally.failed(error)
            raise

    def _log(self, entry: _Entry, answer: Answer) -> None:
        self._tally.answered(answer)
        prediction = Prediction(
            entry.image_id,
            answer.model_name,
            model_version=answer.model_version,
            image_width=answer.image_width,
            image_height=answer.image_height,
            source=answer.source,
            cloud_reason=answer.cloud_reason,
            captured_at=entry.captured_at,
            inference_seconds=answer.attempts[-1].seconds,
            detections=answer.detections,
            defect_detected=self._verdict(answer),
            labels=entry.labels,
            trace_id=entry.trace_id,
        )
        self._logger.log(prediction)

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
    return _Entry(
        image_id=image_id or str(uuid.uuid4()),
        captured_at=time.time() if captured_at is None else captured_at,
        labels=dict(labels or {}),
        trace_id=trace_id_of(traceparent),
    )
