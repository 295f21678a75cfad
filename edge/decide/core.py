"""Who answers for a picture, device or cloud: the part that decides, and does nothing else.

No clock, socket or thread: what happened goes in as an observation together with the time, what to
do comes out as actions. A shell carries them out (`edge.decide.coordinator`). There is one budget,
from the first call on. In mode `auto` the device may use it up to the cloud's reserve; the cloud,
with its retries, may use the rest.
"""

from dataclasses import dataclass, field

import grpc

from edge.decide.answer import Answer, Attempt, Mode, Policy
from edge.detect.base import DetectorResult
from edge.records import CloudReason, Source
from servicekit.errors import Category, SightlineError


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
    """The cloud answered; `replayed`: with what an earlier try had got."""

    result: DetectorResult
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class CloudFailed:
    """A try at the cloud failed."""

    error: SightlineError


@dataclass(frozen=True, slots=True)
class Woke:
    """The time of the latest `WakeAt` has come, and nothing else has."""


Observation = DeviceAnswered | DeviceFailed | CloudAnswered | CloudFailed | Woke


@dataclass(frozen=True, slots=True)
class AskDevice:
    """Start the device's model on the picture."""


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
    """Raise this error; `cause` is the device's error where the cloud failed after it."""

    error: Exception
    attempts: tuple[Attempt, ...]
    cause: Exception | None = None


Action = AskDevice | DropDevice | AskCloud | DropCloud | WakeAt | Finish | Fail


@dataclass(slots=True)
class Coordination:
    """One picture on its way to an answer.

    Call `begin` once, then `observe` with what happens; carry out the actions in order. `Finish`
    or `Fail` comes exactly once and last; what is observed after it is ignored, as is what comes
    from someone who was dropped.

    Attributes:
        policy: how the question is settled.
        has_device: whether there is a model on the device.
        started: the time of the first call, by the clock that the observations use.
    """

    policy: Policy
    has_device: bool
    started: float
    _asked: dict[Source, float] = field(default_factory=dict)  # who is at it, and since when
    _attempts: list[Attempt] = field(default_factory=list)
    _cloud_reason: CloudReason | None = None
    _device_error: Exception | None = None
    _retries: int = 0
    _retry_after: SightlineError | None = None  # what the retry that is due follows upon

    @property
    def _ends(self) -> float:
        return self.started + self.policy.timeout

    def begin(self) -> list[Action]:
        """Returns the first actions."""
        if self.policy.mode is Mode.CLOUD:
            return self._fall_back(CloudReason.REQUESTED, self.started)
        if not self.has_device:
            return self._fall_back(CloudReason.NO_DEVICE_MODEL, self.started)
        self._asked[Source.DEVICE] = self.started
        return [AskDevice(), WakeAt(self.started + self.policy.device_share)]

    def observe(self, observation: Observation, now: float) -> list[Action]:
        """Returns what to do after something happened at the time `now`."""
        match observation:
            case DeviceAnswered(result) if Source.DEVICE in self._asked:
                self._ended(Source.DEVICE, now)
                return [Finish(self._answer(result, Source.DEVICE, now))]
            case DeviceFailed(error) if Source.DEVICE in self._asked:
                return self._device_failed(error, CloudReason.DEVICE_FAILED, now)
            case CloudAnswered(result, replayed) if Source.CLOUD in self._asked:
                self._ended(Source.CLOUD, now)
                return [Finish(self._answer(result, Source.CLOUD, now, replayed=replayed))]
            case CloudFailed(error) if Source.CLOUD in self._asked:
                return self._cloud_failed(error, now)
            case Woke():
                return self._woke(now)
        return []

    def _woke(self, now: float) -> list[Action]:
        if self._retry_after is not None:
            error, self._retry_after = self._retry_after, None
            if now >= self._ends:  # a busy device wakes late
                return [Fail(error, tuple(self._attempts), self._device_error)]
            return self._ask_cloud(now)
        if Source.DEVICE in self._asked:
            late = _late("DEVICE_TIMEOUT", "the device", self.policy.device_share)
            return [DropDevice(), *self._device_failed(late, CloudReason.DEVICE_TIMEOUT, now)]
        if Source.CLOUD in self._asked:
            late = _late("DEADLINE_EXCEEDED", "the cloud", self._ends - self._asked[Source.CLOUD])
            return [DropCloud(), *self._cloud_failed(late, now)]
        return []

    def _device_failed(self, error: Exception, why: CloudReason, now: float) -> list[Action]:
        self._ended(Source.DEVICE, now, error)
        enough = self._ends - now >= self.policy.cloud_reserve
        if self.policy.mode is Mode.DEVICE or not enough or _picture_at_fault(error):
            return [Fail(error, tuple(self._attempts))]
        self._device_error = error
        return self._fall_back(why, now)

    def _fall_back(self, why: CloudReason, now: float) -> list[Action]:
        self._cloud_reason = why
        return self._ask_cloud(now)

    def _ask_cloud(self, now: float) -> list[Action]:
        self._asked[Source.CLOUD] = now
        return [AskCloud(self._ends), WakeAt(self._ends)]

    def _cloud_failed(self, error: SightlineError, now: float) -> list[Action]:
        self._ended(Source.CLOUD, now, error)
        retry_at = now + self.policy.backoff(self._retries + 1) + (error.retry_after or 0.0)
        # Who is dropped from here is not listened to any more, so a call that was cancelled was
        # cancelled by a server that is going away.
        retryable = error.retryable or error.code is grpc.StatusCode.CANCELLED
        # A wait that leaves no time to ask is not begun: an early error is worth more.
        if not retryable or retry_at >= self._ends:
            return [Fail(error, tuple(self._attempts), self._device_error)]
        self._retries += 1
        self._retry_after = error
        return [WakeAt(retry_at)]

    def _ended(self, source: Source, now: float, error: Exception | None = None) -> None:
        since = self._asked.pop(source)
        attempt = Attempt(source, since - self.started, now - since, _reason(error))
        self._attempts.append(attempt)

    def _answer(
        self, result: DetectorResult, source: Source, now: float, *, replayed: bool = False
    ) -> Answer:
        return Answer(
            detections=result.detections,
            source=source,
            cloud_reason=self._cloud_reason,
            model_name=result.model_name,
            model_version=result.model_version,
            image_width=result.image_width,
            image_height=result.image_height,
            device_milliseconds=_milliseconds(self._attempts, Source.DEVICE),
            cloud_milliseconds=_milliseconds(self._attempts, Source.CLOUD),
            total_milliseconds=(now - self.started) * 1e3,
            attempts=tuple(self._attempts),
            idempotent_replayed=replayed,
        )


def _picture_at_fault(error: Exception) -> bool:
    """Whether the cloud, which checks pictures by the same rules, would refuse it, too."""
    return isinstance(error, SightlineError) and error.category is Category.VALIDATION


def _reason(error: Exception | None) -> str:
    if error is None:
        return ""
    return error.reason if isinstance(error, SightlineError) else type(error).__name__


def _milliseconds(attempts: list[Attempt], source: Source) -> float | None:
    """From the first try at the source to the end of its last; None: it was not asked."""
    tries = [attempt for attempt in attempts if attempt.source is source]
    if not tries:
        return None
    return (tries[-1].began + tries[-1].seconds - tries[0].began) * 1e3


def _late(reason: str, who: str, seconds: float) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED, reason, f"{who} did not answer within {seconds:.3f} s"
    )
