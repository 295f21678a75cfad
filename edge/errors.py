"""What a node and a coordinator raise when nobody answers: one family, with the whole story."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from edge.records import Source
from servicekit.errors import SightlineError


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at an answer.

    Attributes:
        source: who was asked.
        began: seconds from the first call to this try.
        seconds: how long it took, or until it was given up.
        error: reason of the failure, or its class where it has none; empty: it answered.
    """

    source: Source
    began: float
    seconds: float
    error: str = ""

    def __str__(self) -> str:
        ended = self.error or "answered"
        return f"{self.source} at {self.began:.3f} s: {ended} after {self.seconds:.3f} s"


class ClosedError(RuntimeError):
    """The logger is closed: nothing can be logged any more."""


class EdgeError(SightlineError):
    """Nobody answered for a picture.

    Code, reason, message, category, `retryable` and the details are those of what failed. Each try
    is in `attempts`, and as a note in a traceback. The cause is what the model raised, or what
    failed before.

    Args:
        error: what failed.
        attempts: every try, in the order in which they ended.

    Attributes:
        attempts: the same.
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
    """The device's model raised, was late or hangs, and the cloud was not asked."""


class CloudError(EdgeError):
    """The cloud did not answer; its cause, if any, is the device's error."""


class CascadeRuleError(EdgeError):
    """The caller's own rule, which says whether the device is unsure, raised; see the cause."""


class CoordinatorClosedError(EdgeError, ClosedError):
    """The node, or the coordinator, is closed."""

    def __init__(self) -> None:
        super().__init__(
            SightlineError(grpc.StatusCode.FAILED_PRECONDITION, "NODE_CLOSED", "the node is closed")
        )


def device_failure(error: BaseException) -> SightlineError:
    """Return what a model raised as one of the family's kind, with it as the cause."""
    if isinstance(error, SightlineError):
        return error
    said = f"the device's model raised {type(error).__name__}: {error}"
    wrapped = SightlineError(grpc.StatusCode.INTERNAL, "DEVICE_FAILED", said)
    wrapped.__cause__ = error
    return wrapped
