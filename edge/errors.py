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
    """

    source: Source
    began: float
    seconds: float
    error: str = ""

    def __str__(self) -> str:
        ended = self.error or "answered"
        return f"{self.source} at {self.began:.3f} s: {ended} after {self.seconds:.3f} s"


class ClosedError(RuntimeError):
    """The logger is closed and accepts no more predictions."""


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
    """The device's model raised an error, was late or hangs, and no cloud request was made."""


class CloudError(EdgeError):
    """The cloud did not answer. The cause is the device's error, if any."""


class CascadeRuleError(EdgeError):
    """The caller's own cascade rule raised an error, which is the cause."""


class CoordinatorClosedError(EdgeError, ClosedError):
    """The node or coordinator is closed."""

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
