"""One image under way: carries out what the coordinator's core decides, and waits for nothing.

Answers and failures are reported as observations, from the device's thread and from gRPC's. How to
wait for them is the caller's business (`edge.decide.coordinator`).
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

_SHORTEST = 0.001  # seconds; a call needs a deadline that lies ahead, even if only just


@dataclass(frozen=True, slots=True)
class Backends:
    """Who can be asked, and how the cloud is asked.

    Attributes:
        gate: says when the cloud is left alone.
        worker: runs the device's model; None: there is none, or the mode does not ask it.
        client: the inference service; None: the mode does not ask it.
        model: which model of the service should answer; None: its default.
        parameters: how the service makes its answers; None: its model's own settings.
        labels: holds the cloud's labels against the device's; None: nobody does.
        renamed: the device's name for classes that the cloud calls otherwise.
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
    """An observation, and when it was made on the monotonic clock."""

    at: float
    observation: Observation


@dataclass(slots=True)
class ActiveRequest:
    """One image, and everything that is under way for it.

    Attributes:
        core: what decides.
        backends: who can be asked.
        image: the image.
        image_id: its name, for the service; empty: none.
        traceparent: W3C traceparent to pass on; empty: none.
        inbox: takes what happens, with the time, from any thread, and returns at once.
    """

    core: Coordination
    backends: Backends
    image: Image
    image_id: str
    traceparent: str
    inbox: Callable[[TimedEvent], None]
    _wake: float = 0.0
    _call: InferCall | None = None
    _permit: Permit | None = None
    _device: "Future[DetectorResult] | None" = None
    _cloud: PendingAnswer | None = None
    _dropped: bool = False
    """The cloud's answer is not wanted any more."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wake_in(self) -> float:
        """Return the seconds, >= 0, after which `Woke` is to be observed."""
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
        """Carry out actions; return the last one of all, or None: there is more to come."""
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
                    if isinstance(verdict, SightlineError):  # it was late, which nobody reports
                        self.backends.gate.failed(verdict)
                case WakeAt(at):
                    self._wake = at
                case Finish() | Fail():
                    return action
        return None

    def drop(self) -> None:
        """End what is still under way, and say what this request has shown of the cloud."""
        self._drop_device()
        self._drop_cloud()
        if self._permit is not None:
            self.backends.gate.release(self._permit, self.core.cloud_verdict)

    def _client(self) -> InferenceClient:
        if self.backends.client is None:
            raise AssertionError("the cloud is asked, but there is no client")
        return self.backends.client

    def _ask_device(self) -> None:
        if self.backends.worker is None:
            raise AssertionError("the device is asked, but there is no detector")
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
        # A file may take its time to be read, or for ever, and pixels to be encoded; meanwhile the
        # device may answer, and the budget end.
        name = "sightline-request"
        threading.Thread(target=self._prepare, args=(ends,), name=name, daemon=True).start()

    def _prepare(self, ends: float) -> None:
        """Make the request to the cloud ready, once for all tries, and send it."""
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
            )
            self._send(self._call, ends)
        except SightlineError as error:
            self.report(CloudFailed(error))
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            self.report(CloudFailed(_unsendable(error)))

    def _send(self, call: InferCall, ends: float) -> None:
        """Start a call, unless nobody wants its answer any more."""
        left = max(ends - time.monotonic(), _SHORTEST)
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
            outstanding = self._cloud
        if outstanding is not None:
            outstanding.cancel()


def _unsendable(error: Exception) -> SightlineError:
    said = f"the image cannot be made ready for the cloud: {error!r}"
    # Nothing of the cloud's: its breaker must not hear of it, and another try would not help.
    wrapped = SightlineError(grpc.StatusCode.FAILED_PRECONDITION, "QUESTION_UNSENDABLE", said)
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
    # SystemExit, or a panic of a native library: no reason to end the caller.
    return DeviceFailed(device_failure(error))


def _cloud_result(answer: InferAnswer) -> DetectorResult:
    if len(answer.results) != 1:
        raise SightlineError(
            grpc.StatusCode.DATA_LOSS,
            "ANSWER_INCOMPLETE",
            f"the service answered for {len(answer.results)} images, not for the one asked",
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
    """The classes of a classified image as detections without boxes, as they are logged."""
    return tuple(Detection(c.class_id, c.class_name, c.probability) for c in image.classes)
