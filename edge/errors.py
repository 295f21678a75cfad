"""Errors of a node or coordinator: one class hierarchy, with every attempt of a failed request."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from edge.records import Source
from servicekit.errors import SightlineError


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to answer a request.

    Attributes:
        source: the device or the cloud.
        began: start of the attempt, in seconds after the start of the request.
        seconds: duration of the attempt until its answer, failure or cancellation.
        error: reason of the failure, or its class if it has no reason. Empty: it answered.

    Example:
        >>> from sightline import Attempt, Source
        >>> print(Attempt(Source.CLOUD, began=0.25, seconds=0.5, error="UNAVAILABLE"))
        cloud at 0.250 s: UNAVAILABLE after 0.500 s
    """

    source: Source
    began: float
    seconds: float
    error: str = ""

    def __str__(self) -> str:
        ended = self.error or "answered"
        return f"{self.source} at {self.began:.3f} s: {ended} after {self.seconds:.3f} s"


class ClosedError(RuntimeError):
    """The logger is closed and accepts no more predictions.

    Example:
        >>> from sightline import ClosedError, Prediction, PredictionLogger
        >>> logger = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir="spool")
        >>> logger.close()
        True
        >>> try:
        ...     logger.log(Prediction("photo.jpg", "parts"))
        ... except ClosedError as error:
        ...     print(error)
        the logger is closed
    """


class EdgeError(SightlineError):
    """Neither the device nor the cloud answered a request.

    Code, reason, message, category, `retryable` and the details are those of the failure. Each
    attempt is in `attempts` and a note in the traceback. The cause is the exception of the model,
    or the previous failure.

    Args:
        error: the failure.
        attempts: all attempts, in the order in which they ended.

    Attributes:
        attempts: all attempts, in the order in which they ended.

    Example:
        >>> from sightline import EdgeError, InferenceCoordinator, Mode, OnnxDetector, Policy
        >>> policy = Policy(mode=Mode.DEVICE)
        >>> with InferenceCoordinator(OnnxDetector("model.onnx"), None, policy) as coordinator:
        ...     try:
        ...         answer = coordinator.ask("no-such-file.jpg")
        ...     except EdgeError as error:
        ...         print(error.reason, error.retryable, error.attempts[0].source.value)
        IMAGE_FILE_UNREADABLE False device
    """

    def __init__(self, error: SightlineError, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(
            error.code,
            error.reason,
            error.message,
            violations=error.violations,
            quotas=error.quotas,
            retry_after=error.retry_after,
            metadata=error.metadata,
            do_not_retry=error.do_not_retry,
        )
        self.attempts = tuple(attempts)
        for attempt in self.attempts:
            self.add_note(str(attempt))


class DeviceError(EdgeError):
    """The device's model raised an error, was late or hangs, and no cloud request was made.

    Example:
        >>> from sightline import DeviceError, InferenceCoordinator, Mode, Policy
        >>> class Broken:
        ...     name, version = "broken", "1"
        ...     def detect(self, image):
        ...         raise RuntimeError("out of GPU memory")
        >>> with InferenceCoordinator(Broken(), None, Policy(mode=Mode.DEVICE)) as coordinator:
        ...     try:
        ...         answer = coordinator.ask("photo.jpg")
        ...     except DeviceError as error:
        ...         print(error.reason, repr(error.__cause__))
        DEVICE_FAILED RuntimeError('out of GPU memory')
    """


class CloudError(EdgeError):
    """The cloud did not answer. The cause is the device's error, if any.

    Example:
        >>> from sightline import CloudError, InferenceClient, InferenceCoordinator, Mode, Policy
        >>> policy = Policy(mode=Mode.CLOUD, timeout=0.5, cloud_reserve=0.0)
        >>> with (
        ...     InferenceClient("127.0.0.1:1") as client,  # no service listens on this port
        ...     InferenceCoordinator(None, client, policy) as coordinator,
        ... ):
        ...     try:
        ...         answer = coordinator.ask("photo.jpg")
        ...     except CloudError as error:
        ...         print({attempt.source.value for attempt in error.attempts})
        {'cloud'}
    """


class CascadeRuleError(EdgeError):
    """The caller's own cascade rule raised an error, which is the cause.

    Example:
        >>> from sightline import Cascade, CascadeRuleError, DetectorResult, InferenceClient
        >>> from sightline import InferenceCoordinator, Mode, Policy
        >>> class Blank:
        ...     name, version, labels = "blank", "1", ("part",)
        ...     def detect(self, image):
        ...         return DetectorResult((), 640, 480, self.name, self.version)
        >>> policy = Policy(mode=Mode.CASCADE, cascade=Cascade(rule=lambda result: 1 / 0))
        >>> with (
        ...     InferenceClient("127.0.0.1:1") as client,
        ...     InferenceCoordinator(Blank(), client, policy) as coordinator,
        ... ):
        ...     try:
        ...         answer = coordinator.ask("photo.jpg")
        ...     except CascadeRuleError as error:
        ...         print(error.reason, repr(error.__cause__))
        CASCADE_RULE_FAILED ZeroDivisionError('division by zero')
    """


class CoordinatorClosedError(EdgeError, ClosedError):
    """The node or coordinator is closed.

    Example:
        >>> from sightline import CoordinatorClosedError, InferenceClient
        >>> from sightline import InferenceCoordinator, Policy
        >>> with InferenceClient("127.0.0.1:1") as client:
        ...     coordinator = InferenceCoordinator(None, client, Policy())
        ...     coordinator.close()
        ...     try:
        ...         answer = coordinator.ask("photo.jpg")
        ...     except CoordinatorClosedError as error:
        ...         print(error.reason)
        NODE_CLOSED
    """

    def __init__(self) -> None:
        super().__init__(
            SightlineError(grpc.StatusCode.FAILED_PRECONDITION, "NODE_CLOSED", "the node is closed")
        )


def device_failure(error: BaseException) -> SightlineError:
    """Return the exception of a model as a `SightlineError`, with the exception as its cause."""
    if isinstance(error, SightlineError):
        return error
    message = f"the device's model raised {type(error).__name__}: {error}"
    wrapped = SightlineError(grpc.StatusCode.INTERNAL, "DEVICE_FAILED", message)
    wrapped.__cause__ = error
    return wrapped
