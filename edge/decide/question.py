"""One picture under way: carries out what the coordinator's core decides, and waits for nothing.

Answers and failures are reported as observations, from the device's thread and from gRPC's. How to
wait for them is the caller's business (`edge.decide.coordinator`).
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import grpc

from edge.cloud.call import InferCall
from edge.cloud.client import InferenceClient
from edge.cloud.pending import PendingAnswer
from edge.cloud.types import ImageAnswer, InferAnswer, InferParameters, ModelHint
from edge.decide.breaker import Pass
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
from edge.decide.gate import CloudGate
from edge.detect.base import DetectorResult, Image
from edge.errors import device_failure
from edge.records import Detection
from servicekit.errors import SightlineError

_SHORTEST = 0.001  # seconds; a call needs a deadline that lies ahead, even if only just


@dataclass(frozen=True, slots=True)
class Parties:
    """Who can be asked, and how the cloud is asked.

    Attributes:
        gate: says when the cloud is left alone.
        worker: runs the device's model; None: there is none, or the mode does not ask it.
        client: the inference service; None: the mode does not ask it.
        model: which model of the service should answer; None: its default.
        parameters: how the service makes its answers; None: its model's own settings.
    """

    gate: CloudGate
    worker: DeviceWorker | None
    client: InferenceClient | None
    model: ModelHint | None = None
    parameters: InferParameters | None = None


@dataclass(slots=True)
class Question:
    """One picture, and everything that is under way for it.

    Attributes:
        core: what decides.
        parties: who can be asked.
        image: the picture.
        image_id: its name, for the service; empty: none.
        traceparent: W3C traceparent to pass on; empty: none.
        report: takes what happens, from any thread, and returns at once.
    """

    core: Coordination
    parties: Parties
    image: Image
    image_id: str
    traceparent: str
    report: Callable[[Observation], None]
    _wake: float = 0.0
    _call: InferCall | SightlineError | None = None
    _leave: Pass | None = None
    _refusal: SightlineError | None = None
    _device: "Future[DetectorResult] | None" = None
    _cloud: PendingAnswer | None = None

    def patience(self) -> float:
        """Returns the seconds, >= 0, after which `Woke` is to be observed."""
        return max(self._wake - time.monotonic(), 0.0)

    def observe(self, happened: Observation) -> list[Action]:
        """Returns what to do after something happened just now."""
        return self.core.observe(happened, time.monotonic())

    def may_ask_cloud(self) -> bool:
        """Returns whether the cloud may be asked, which is settled once for all tries."""
        if self._leave is None and self._refusal is None:
            try:
                self._leave = self.parties.gate.ask()
            except SightlineError as error:
                self._refusal = error
        return self._leave is not None

    def prepare(self) -> None:
        """Makes the question to the cloud ready: reads a file or encodes pixels, but only once."""
        if self._call is None:
            try:
                self._call = self._client().prepare(
                    [self.image],
                    image_ids=[self.image_id],
                    model=self.parties.model,
                    parameters=self.parties.parameters,
                    traceparent=self.traceparent,
                )
            except SightlineError as error:
                self._call = error

    def perform(self, actions: list[Action]) -> Finish | Fail | None:
        """Carries out actions; returns the last one of all, or None: there is more to come."""
        for action in actions:
            match action:
                case AskDevice():
                    self._ask_device()
                case AskCloud(ends):
                    self._ask_cloud(ends)
                case DropDevice() | DropCloud():
                    self._drop(action)
                case WakeAt(at):
                    self._wake = at
                case Finish() | Fail():
                    return action
        return None

    def drop(self) -> None:
        """Ends what is still under way, and says what this question has shown of the cloud."""
        self._drop(DropDevice())
        self._drop(DropCloud())
        if self._leave is not None:
            self.parties.gate.settle(self._leave, self.core.cloud_verdict)

    def _client(self) -> InferenceClient:
        if self.parties.client is None:
            raise AssertionError("the cloud is asked, but there is no client")
        return self.parties.client

    def _ask_device(self) -> None:
        if self.parties.worker is None:
            raise AssertionError("the device is asked, but there is no detector")
        self._device = self.parties.worker.submit(self.image)
        self._device.add_done_callback(self._device_done)

    def _device_done(self, future: "Future[DetectorResult]") -> None:
        if not future.cancelled():
            self.report(_device_observation(future))

    def _ask_cloud(self, ends: float) -> None:
        if not self.may_ask_cloud() and self._refusal is not None:
            self.report(CloudRefused(self._refusal))
            return
        self.prepare()
        try:
            self._send(ends)
        except SightlineError as error:
            self.report(self._failed(error))

    def _send(self, ends: float) -> None:
        """Starts a call. Raises SightlineError: the question cannot be asked."""
        if isinstance(self._call, SightlineError):
            raise self._call
        if self._call is None:
            raise AssertionError("the question is sent, but was not prepared")
        left = max(ends - time.monotonic(), _SHORTEST)
        pending = self._cloud = self._client().send(self._call, timeout=left)
        pending.add_done_callback(lambda: self.report(self._cloud_observation(pending)))

    def _failed(self, error: SightlineError) -> CloudFailed:
        return CloudFailed(error, may_retry=self.parties.gate.failed(error))

    def _cloud_observation(self, pending: PendingAnswer) -> CloudAnswered | CloudFailed:
        try:
            answer = pending.result()
            result = _cloud_result(answer)
        except SightlineError as error:
            return self._failed(error)
        return CloudAnswered(
            result, answer.idempotent_replayed, answer.bytes_sent, answer.bytes_saved
        )

    def _drop(self, action: DropDevice | DropCloud) -> None:
        outstanding = self._device if isinstance(action, DropDevice) else self._cloud
        if outstanding is not None:
            outstanding.cancel()


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
            f"the service answered for {len(answer.results)} pictures, not for the one asked",
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
    """The classes of a classified picture as detections without boxes, as they are logged."""
    return tuple(Detection(c.class_id, c.class_name, c.probability) for c in image.classes)
