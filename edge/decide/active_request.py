"""A request in progress: performs the actions that `edge.decide.core` returns, without waiting.

The threads of the device and of gRPC report answers and failures as observations, for which the
caller waits (`edge.decide.coordinator`).
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc

from edge.cloud.call import InferCall
from edge.cloud.client import InferenceClient
from edge.cloud.pending import PendingAnswer
from edge.cloud.types import ImageAnswer, InferAnswer, InferParameters, ModelHint
from edge.decide.cloud_health import CloudGate, Permit
from edge.decide.cloud_labels import CloudLabels
from edge.decide.core import Coordination
from edge.decide.device_worker import DeviceWorker
from edge.decide.events import (
    Action,
    AskCloud,
    AskDevice,
    CloudAnswered,
    CloudFailed,
    CloudRefused,
    DeviceAnswered,
    DeviceFailed,
    DropCloud,
    DropDevice,
    Fail,
    Finish,
    Observation,
    WakeAt,
)
from edge.decide.labels import rename
from edge.detect.base import DetectorResult, Image
from edge.errors import device_failure
from edge.records import Detection
from servicekit.errors import SightlineError

_MIN_TIMEOUT = 0.001  # seconds; the deadline of a call must be in the future


@dataclass(frozen=True, slots=True)
class Backends:
    """The device and the cloud, with the parameters of requests to the cloud.

    Attributes:
        gate: the circuit breaker and the retry tokens of the cloud.
        worker: runs the device's model; None: there is none, or the mode does not use it.
        client: the client of the inference service; None: the mode does not use it.
        model: the model of the service to use; None: its default.
        parameters: thresholds and limits for the service; None: those of its model.
        labels: checks the cloud's labels; None: they are not checked.
        renamed: the device's names for classes of the cloud, by the cloud's names.
    """

    gate: CloudGate
    worker: DeviceWorker | None
    client: InferenceClient | None
    model: ModelHint | None = None
    parameters: InferParameters | None = None
    labels: CloudLabels | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """An observation with its time on the monotonic clock."""

    at: float
    observation: Observation


@dataclass(slots=True)
class ActiveRequest:
    """One request in progress, with its call to the cloud and its run on the device.

    Attributes:
        core: decides what to do.
        backends: the device and the cloud.
        image: the image.
        image_id: name of the image for the service; empty: none.
        traceparent: W3C traceparent to pass on; empty: none.
        context: labels of the request for the service.
        inbox: receives events from any thread, without blocking.
    """

    core: Coordination
    backends: Backends
    image: Image
    image_id: str
    traceparent: str
    context: Mapping[str, str] | None
    inbox: Callable[[TimedEvent], None]
    _wake: float = 0.0
    _call: InferCall | None = None
    _permit: Permit | None = None
    _device: "Future[DetectorResult] | None" = None
    _cloud: PendingAnswer | None = None
    _dropped: bool = False
    """True once the cloud's answer is no longer needed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wake_in(self) -> float:
        """Return the seconds, >= 0, after which `Woke` must be observed."""
        return max(self._wake - time.monotonic(), 0.0)

    def report(self, observation: Observation) -> None:
        """Put an observation into the inbox with the current time; callable from any thread."""
        self.inbox(TimedEvent(time.monotonic(), observation))

    def observe(self, event: TimedEvent) -> list[Action]:
        """Return the actions that follow from an event."""
        observation = event.observation
        if isinstance(observation, CloudFailed) and self.core.waits_for_cloud:
            error = observation.error
            observation = CloudFailed(error, may_retry=self.backends.gate.failed(error))
        return self.core.observe(observation, event.at)

    def perform(self, actions: list[Action]) -> Finish | Fail | None:
        """Perform actions; return `Finish` or `Fail` if the request has ended, else None."""
        for action in actions:
            match action:
                case AskDevice():
                    self._ask_device()
                case AskCloud(ends):
                    self._ask_cloud(ends)
                case DropDevice():
                    self._drop_device()
                case DropCloud():
                    self._drop_cloud()
                    verdict = self.core.cloud_verdict
                    if isinstance(verdict, SightlineError):  # a timeout, which no thread reports
                        self.backends.gate.failed(verdict)
                case WakeAt(at):
                    self._wake = at
                case Finish() | Fail():
                    return action
        return None

    def drop(self) -> None:
        """Cancel what is still in progress, and release the breaker's permit."""
        self._drop_device()
        self._drop_cloud()
        if self._permit is not None:
            self.backends.gate.release(self._permit, self.core.cloud_verdict)

    def _client(self) -> InferenceClient:
        if self.backends.client is None:
            raise AssertionError("the core asks the cloud, but there is no client")
        return self.backends.client

    def _ask_device(self) -> None:
        if self.backends.worker is None:
            raise AssertionError("the core asks the device, but there is no detector")
        self._device = self.backends.worker.submit(self.image)
        self._device.add_done_callback(self._device_done)

    def _device_done(self, future: "Future[DetectorResult]") -> None:
        if not future.cancelled():
            self.report(_device_observation(future))

    def _ask_cloud(self, ends: float) -> None:
        if self._call is not None:
            self._send(self._call, ends)
            return
        try:
            self._permit = self.backends.gate.acquire()
        except SightlineError as error:
            self.report(CloudRefused(error))
            return
        # Reading a file may block, and encoding takes time. Meanwhile the device may answer, or
        # the budget may end.
        name = "sightline-request"
        threading.Thread(target=self._prepare, args=(ends,), name=name, daemon=True).start()

    def _prepare(self, ends: float) -> None:
        """Prepare the request to the cloud, once for all tries, and send it."""
        try:
            if self.backends.labels is not None:
                self.backends.labels.check_model((ends - time.monotonic()) / 2)
        except SightlineError as error:
            self.report(CloudRefused(error))
            return
        try:
            self._call = self._client().prepare(
                [self.image],
                image_ids=[self.image_id],
                model=self.backends.model,
                parameters=self.backends.parameters,
                traceparent=self.traceparent,
                context=self.context,
            )
            self._send(self._call, ends)
        except SightlineError as error:
            self.report(CloudFailed(error))
        except Exception as error:  # noqa: BLE001 - the caller waits for a report of any failure
            self.report(CloudFailed(_unsendable(error)))

    def _send(self, call: InferCall, ends: float) -> None:
        """Start a call, unless its answer is no longer needed."""
        left = max(ends - time.monotonic(), _MIN_TIMEOUT)
        with self._lock:
            if self._dropped:
                return
            try:
                pending = self._cloud = self._client().send(call, timeout=left)
            except SightlineError as error:
                self.report(CloudFailed(error))
                return
        pending.add_done_callback(lambda: self.report(_cloud_observation(pending, self.backends)))

    def _drop_device(self) -> None:
        if self._device is not None:
            self._device.cancel()

    def _drop_cloud(self) -> None:
        with self._lock:
            self._dropped = True
            pending = self._cloud
        if pending is not None:
            pending.cancel()


def _unsendable(error: Exception) -> SightlineError:
    text = f"the image cannot be prepared for the cloud: {error!r}"
    # This code neither counts as a failure of the cloud nor causes a retry, which would not help.
    wrapped = SightlineError(grpc.StatusCode.FAILED_PRECONDITION, "QUESTION_UNSENDABLE", text)
    wrapped.__cause__ = error
    return wrapped


def _cloud_observation(pending: PendingAnswer, backends: Backends) -> CloudAnswered | CloudFailed:
    try:
        answer = pending.result()
        result = rename(_cloud_result(answer), backends.renamed)
        if backends.labels is not None:
            backends.labels.check_answer(result)
    except SightlineError as error:
        return CloudFailed(error)
    return CloudAnswered(result, answer.idempotent_replayed, answer.bytes_sent, answer.bytes_saved)


def _device_observation(future: "Future[DetectorResult]") -> DeviceAnswered | DeviceFailed:
    error = future.exception()
    if error is None:
        return DeviceAnswered(future.result())
    if isinstance(error, Exception):
        return DeviceFailed(error)
    # SystemExit, or a panic of a native library: it must not end the caller.
    return DeviceFailed(device_failure(error))


def _cloud_result(answer: InferAnswer) -> DetectorResult:
    if len(answer.results) != 1:
        raise SightlineError(
            grpc.StatusCode.DATA_LOSS,
            "ANSWER_INCOMPLETE",
            f"the service must return one result, got {len(answer.results)}",
        )
    (image,) = answer.results
    if image.error is not None:
        raise image.error
    return DetectorResult(
        detections=image.detections or _classes(image),
        image_width=image.image_width,
        image_height=image.image_height,
        model_name=answer.model_name,
        model_version=answer.model_version,
    )


def _classes(image: ImageAnswer) -> tuple[Detection, ...]:
    """Return the classes of a classified image as detections without boxes, for the log."""
    return tuple(
        Detection(score.class_id, score.class_name, score.probability) for score in image.classes
    )
