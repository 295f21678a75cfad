"""The observations that `edge.decide.core` receives, and the actions that it returns."""

from dataclasses import dataclass

from edge.decide.answer import Answer
from edge.detect.base import DetectorResult
from edge.errors import Attempt
from edge.records import Source
from servicekit.errors import SightlineError


@dataclass(frozen=True, slots=True)
class DeviceAnswered:
    """An observation: the device's model answered."""

    result: DetectorResult


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """An observation: the device's model raised an exception."""

    error: Exception


@dataclass(frozen=True, slots=True)
class CloudAnswered:
    """An observation: the cloud answered."""

    result: DetectorResult
    replayed: bool = False
    """True if it returned the stored answer of an earlier try."""
    bytes_sent: int = 0
    bytes_saved: int = 0


@dataclass(frozen=True, slots=True)
class CloudFailed:
    """An observation: a try at the cloud failed."""

    error: SightlineError
    may_retry: bool = True
    """True if the retry tokens allow another try."""


@dataclass(frozen=True, slots=True)
class CloudRefused:
    """An observation: the request was not sent to the cloud, because of its breaker or labels."""

    error: SightlineError


@dataclass(frozen=True, slots=True)
class Woke:
    """An observation: the time of the latest `WakeAt` has come."""


Observation = DeviceAnswered | DeviceFailed | CloudAnswered | CloudFailed | CloudRefused | Woke


@dataclass(frozen=True, slots=True)
class AskDevice:
    """An action: start the device's model on the image."""


@dataclass(frozen=True, slots=True)
class DropDevice:
    """An action: cancel the device's run, whose result is no longer needed."""


@dataclass(frozen=True, slots=True)
class AskCloud:
    """An action: call the cloud with the deadline `ends`. All tries have the same key."""

    ends: float


@dataclass(frozen=True, slots=True)
class DropCloud:
    """An action: cancel the call to the cloud, whose answer is no longer needed."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """An action: report `Woke` at the time `at`. It replaces an earlier `WakeAt`."""

    at: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The last action: return this answer."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Fail:
    """The last action: raise this error, because neither device nor cloud answered.

    Attributes:
        error: the latest failure, or the exception of the cascade's rule.
        attempts: all tries, in the order in which they ended.
        source: the device or the cloud, whichever failed; None: the cascade's rule failed.
        cause: an earlier failure, if there was one.
    """

    error: Exception
    attempts: tuple[Attempt, ...]
    source: Source | None
    cause: Exception | None = None


Action = AskDevice | DropDevice | AskCloud | DropCloud | WakeAt | Finish | Fail
