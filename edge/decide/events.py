"""What happens to a request, and what is done about it: the words of the core and its shell."""

from dataclasses import dataclass

from edge.decide.answer import Answer
from edge.detect.base import DetectorResult
from edge.errors import Attempt
from edge.records import Source
from servicekit.errors import SightlineError


@dataclass(frozen=True, slots=True)
class DeviceAnswered:
    """The device's model answered."""

    result: DetectorResult


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """The device's model raised."""

    error: Exception


@dataclass(frozen=True, slots=True)
class CloudAnswered:
    """The cloud answered."""

    result: DetectorResult
    replayed: bool = False
    """With what an earlier try had got."""
    bytes_sent: int = 0
    bytes_saved: int = 0


@dataclass(frozen=True, slots=True)
class CloudFailed:
    """A try at the cloud failed."""

    error: SightlineError
    may_retry: bool = True
    """Whether there are tokens for another try."""


@dataclass(frozen=True, slots=True)
class CloudRefused:
    """The cloud is left alone for now, and was not asked."""

    error: SightlineError


@dataclass(frozen=True, slots=True)
class Woke:
    """The time of the latest `WakeAt` has come, and nothing else has."""


Observation = DeviceAnswered | DeviceFailed | CloudAnswered | CloudFailed | CloudRefused | Woke


@dataclass(frozen=True, slots=True)
class AskDevice:
    """Start the device's model on the image."""


@dataclass(frozen=True, slots=True)
class DropDevice:
    """Nobody waits for the device any more."""


@dataclass(frozen=True, slots=True)
class AskCloud:
    """Start a call to the cloud that ends at the time `ends`; every try has the same key."""

    ends: float


@dataclass(frozen=True, slots=True)
class DropCloud:
    """Nobody waits for the cloud any more."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Report `Woke` at the time `at` unless something happens before; replaces earlier ones."""

    at: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Return this answer."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise this error: nobody answered.

    Attributes:
        error: what failed last; of a rule, if neither device nor cloud failed.
        attempts: every try, in the order in which they ended.
        source: who failed; None: the caller's rule did.
        cause: what failed before that, if anything did.
    """

    error: Exception
    attempts: tuple[Attempt, ...]
    source: Source | None
    cause: Exception | None = None


Action = AskDevice | DropDevice | AskCloud | DropCloud | WakeAt | Finish | Fail
