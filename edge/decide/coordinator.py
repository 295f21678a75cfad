"""The coordinator: asks the device or the cloud about images, within one time budget each.

It has one entry point for threads and one for asyncio, which differ only in how they wait.
`edge.decide.core` decides what to do, and `edge.decide.active_request` does it.
"""

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Self

import grpc

from edge.cloud.client import InferenceClient
from edge.cloud.types import InferParameters, ModelHint
from edge.decide.active_request import ActiveRequest, Backends, TimedEvent
from edge.decide.answer import Answer
from edge.decide.cloud_health import BreakerState, CloudGate
from edge.decide.cloud_labels import CloudLabels
from edge.decide.core import Coordination
from edge.decide.counters import CoordinatorStats, Counters
from edge.decide.device_worker import DeviceWorker
from edge.decide.events import Fail, Finish, Woke
from edge.decide.labels import LabelRule, labels_of
from edge.decide.policy import Mode, Policy
from edge.detect.base import Detector, Image
from edge.errors import (
    CascadeRuleError,
    CloudError,
    CoordinatorClosedError,
    DeviceError,
    EdgeError,
    device_failure,
)
from edge.records import Source
from servicekit.errors import SightlineError

logger = logging.getLogger(__name__)


class InferenceCoordinator:
    """A coordinator of inference by the device and the cloud, for any number of threads and tasks.

    Construct it after forking: neither its thread nor gRPC's connections survive a fork.

    Args:
        detector: the model on the device; None: the device has none. It is not closed here.
        client: the client of the inference service; None in mode `device` only. It is not closed
            here.
        policy: the mode, the time budget and the limits.
        model: the model of the service to use; None: its default.
        parameters: thresholds and limits for the service; None: those of its model.

    Raises:
        ValueError: the mode needs a detector or a client, and there is none.

    Example:
        >>> from sightline import InferenceCoordinator, Mode, OnnxDetector, Policy
        >>> policy = Policy(mode=Mode.DEVICE, timeout=2.0)
        >>> with InferenceCoordinator(OnnxDetector("model.onnx"), None, policy) as coordinator:
        ...     answer = coordinator.ask("photo.jpg")
        >>> answer.source, len(answer.detections)
        (<Source.DEVICE: 'device'>, 3)
    """

    def __init__(
        self,
        detector: Detector | None,
        client: InferenceClient | None,
        policy: Policy,
        *,
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
    ) -> None:
        if policy.mode is Mode.DEVICE and detector is None:
            raise ValueError("detector must be given in mode device")
        if policy.mode is not Mode.DEVICE and client is None:
            raise ValueError(f"client must be given in mode {policy.mode}")
        worker = None
        if detector is not None and policy.mode is not Mode.CLOUD:
            # A caller never waits longer than the budget, so a longer run hangs.
            worker = DeviceWorker(detector, hang_seconds=policy.timeout)
        self._policy = policy
        labels = None
        if detector is not None and worker is not None and client is not None:
            labels = _cloud_labels(detector, client, policy, model)
        self._backends = Backends(
            CloudGate(policy), worker, client, model, parameters, labels, policy.cloud_label_map
        )
        self._counters = Counters()
        self._closed = False

    def ask(
        self,
        image: Image,
        *,
        image_id: str = "",
        traceparent: str = "",
        context: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer for one image, within the policy's timeout.

        Args:
            image: the image, in any form. An array is not copied: do not change it meanwhile.
            image_id: name of the image for the service; empty: none.
            traceparent: W3C traceparent to pass on; empty: none.
            context: labels of the request for the service; see `InferenceClient.infer`.

        Raises:
            DeviceError: the model on the device raised an exception, was late or hangs, or the
                image is invalid, and the cloud was not asked. The cause is the model's exception.
            CloudError: the cloud did not answer. The cause is the device's error, if there is one.
            CascadeRuleError: the policy's `Cascade.rule` raised an exception.
            CoordinatorClosedError: the coordinator is closed.
        """
        inbox: queue.SimpleQueue[TimedEvent] = queue.SimpleQueue()
        with self._request(image, image_id, traceparent, context, inbox.put) as request:
            actions = request.core.begin()
            while (end := request.perform(actions)) is None:
                actions = request.observe(_next(inbox, request.wake_in()))
        return self._result(request, end)

    async def aask(
        self,
        image: Image,
        *,
        image_id: str = "",
        traceparent: str = "",
        context: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer for one image; see `ask`. Cancelling the task cancels the request."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[TimedEvent] = asyncio.Queue()

        def report(event: TimedEvent) -> None:
            with suppress(RuntimeError):  # the loop is closed, so no task waits any more
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        with self._request(image, image_id, traceparent, context, report) as request:
            actions = request.core.begin()
            while (end := request.perform(actions)) is None:
                actions = request.observe(await _anext(inbox, request.wake_in()))
        return self._result(request, end)

    @property
    def breaker(self) -> BreakerState:
        """The state of the cloud's circuit breaker."""
        return self._backends.gate.state

    def stats(self) -> CoordinatorStats:
        """Return the counts so far."""
        return self._counters.stats(self._backends.gate, self._backends.worker)

    def close(self) -> None:
        """Stop the device's worker; wait for its current image for up to a second."""
        self._closed = True
        if self._backends.worker:
            self._backends.worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _result(self, request: ActiveRequest, end: Finish | Fail) -> Answer:
        """Count the request, and return its answer or raise its error."""
        self._counters.ended(request.core, end)
        if isinstance(end, Finish):
            return end.answer
        raise _error(end)

    @contextmanager
    def _request(
        self,
        image: Image,
        image_id: str,
        traceparent: str,
        context: Mapping[str, str] | None,
        inbox: Callable[[TimedEvent], None],
    ) -> Iterator[ActiveRequest]:
        if self._closed:
            raise CoordinatorClosedError
        worker = self._backends.worker
        slow_after = None
        if worker is not None and self._policy.mode is Mode.HEDGED:
            slow_after = worker.run_times.p95()
        core = Coordination(self._policy, worker is not None, time.monotonic(), slow_after)
        request = ActiveRequest(core, self._backends, image, image_id, traceparent, context, inbox)
        try:
            yield request
        finally:
            request.drop()
            self._counters.retried(core.retries)


def _cloud_labels(
    detector: Detector, client: InferenceClient, policy: Policy, model: ModelHint | None
) -> CloudLabels | None:
    """Return the check of the cloud's labels; None: the labels may differ."""
    rejects = policy.mode in (Mode.CASCADE, Mode.HEDGED)
    if policy.takes_other_labels or policy.mode is Mode.DEVICE:
        return None
    if not labels_of(detector):
        if rejects:
            logger.warning(
                "the detector has no attribute labels: they are not compared with the cloud's"
            )
        return None
    labels = CloudLabels(
        LabelRule(partial(labels_of, detector), policy.cloud_label_map),
        lambda seconds: client.list_models(timeout=seconds),
        model or ModelHint(),
        rejects=rejects,
    )
    labels.start()
    return labels


def _next(inbox: "queue.SimpleQueue[TimedEvent]", wake_in: float) -> TimedEvent:
    try:
        return inbox.get(timeout=wake_in)
    except queue.Empty:
        return TimedEvent(time.monotonic(), Woke())


async def _anext(inbox: "asyncio.Queue[TimedEvent]", wake_in: float) -> TimedEvent:
    try:
        async with asyncio.timeout(wake_in):
            return await inbox.get()
    except TimeoutError:
        return TimedEvent(time.monotonic(), Woke())


def _error(end: Fail) -> EdgeError:
    """Return the error to raise, with its cause."""
    cause: BaseException | None = end.cause
    if end.source is None:
        text = f"the cascade's rule raised {type(end.error).__name__}: {end.error}"
        plain = SightlineError(grpc.StatusCode.INTERNAL, "CASCADE_RULE_FAILED", text)
        error: EdgeError = CascadeRuleError(plain, end.attempts)
        cause = end.error
    elif end.source is Source.DEVICE:
        plain = device_failure(end.error)
        error = DeviceError(plain, end.attempts)
        cause = cause or plain.__cause__ or plain
    else:
        plain = device_failure(end.error)
        error = CloudError(plain, end.attempts)
        cause = plain
        if end.cause is not None:
            cause = DeviceError(device_failure(end.cause))
            cause.__cause__ = end.cause
    error.__cause__ = cause
    return error
