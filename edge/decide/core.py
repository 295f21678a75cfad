"""The state machine that decides when the device and the cloud are asked about an image.

It uses no clock, socket or thread: its inputs are observations with their times, its outputs are
actions, which `edge.decide.active_request` performs. Each request has one time budget. The device
may use it up to the cloud's reserve; the cloud, with its retries, may use the rest.
"""

from dataclasses import dataclass, field

import grpc

from edge.decide.answer import Answer
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
    Woke,
)
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult
from edge.errors import Attempt
from edge.records import CloudReason, Source
from servicekit.errors import Category, SightlineError

NO_TIME_LEFT = "NO_TIME_LEFT"
"""`Answer.cloud_error`: the device was unsure, but too little time was left for the cloud."""


class Tries:
    """The tries of one request. The caller passes the times.

    Args:
        started: the time at which the request started.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._since: dict[Source, float] = {}
        self._ended: list[Attempt] = []

    def begin(self, source: Source, now: float) -> None:
        """Record the start of a try."""
        self._since[source] = now

    def end(self, source: Source, now: float, error: Exception | None = None) -> float:
        """Record the end of a try, and return its duration in seconds."""
        since = self._since.pop(source)
        self._ended.append(Attempt(source, since - self._started, now - since, _reason(error)))
        return now - since

    def forget(self, source: Source) -> None:
        """Discard a try that was not made after all."""
        del self._since[source]

    def under_way(self, source: Source) -> bool:
        """Return True if a try at the source is in progress."""
        return source in self._since

    @property
    def ended(self) -> tuple[Attempt, ...]:
        """The tries that have ended, in that order."""
        return tuple(self._ended)

    def milliseconds(self, source: Source) -> float | None:
        """Return the time from the source's first try to the end of its last; None: no try."""
        tries = [attempt for attempt in self._ended if attempt.source is source]
        if not tries:
            return None
        return (tries[-1].began + tries[-1].seconds - tries[0].began) * 1e3


def _reason(error: Exception | None) -> str:
    if error is None:
        return ""
    return error.reason if isinstance(error, SightlineError) else type(error).__name__


@dataclass(slots=True)
class Coordination:
    """The state of one request.

    Attributes:
        policy: the mode, the time budget and the limits.
        has_device: True if there is a model on the device.
        started: the time at which the request started, on any monotonic clock.
        slow_after: seconds after which the device counts as slow (mode `hedged`); None: not known
            yet.
    """

    policy: Policy
    has_device: bool
    started: float
    slow_after: float | None = None
    _tries: Tries = field(init=False)
    _ends: float = field(init=False)
    _over: bool = False
    _wakes: float | None = None
    _device_until: float | None = None
    _slow_at: float | None = None
    _retry_at: float | None = None
    _retries: int = 0
    _kept: DetectorResult | None = None
    """The device's unsure result, to be used if the cloud does not answer."""
    _device_error: Exception | None = None
    _cloud_error: SightlineError | None = None
    """The error of the latest try at the cloud."""
    _has_cloud_answered: bool = False
    _cloud_reason: CloudReason | None = None

    def __post_init__(self) -> None:
        self._tries = Tries(self.started)
        self._ends = self.started + self.policy.timeout

    @property
    def retries(self) -> int:
        """The number of tries at the cloud after the first."""
        return self._retries

    @property
    def waits_for_cloud(self) -> bool:
        """True if a try at the cloud is in progress."""
        return self._tries.under_way(Source.CLOUD)

    @property
    def cloud_verdict(self) -> SightlineError | bool | None:
        """The result for the breaker: True if the cloud answered, its latest error, or None."""
        if self._has_cloud_answered:
            return True
        return None if self._tries.under_way(Source.CLOUD) else self._cloud_error

    @property
    def cloud_reason(self) -> CloudReason | None:
        """The reason why the cloud was asked; None: it was not asked."""
        return self._cloud_reason

    def begin(self) -> list[Action]:
        """Return the first actions."""
        if self.policy.mode is Mode.CLOUD:
            return self._then(self._ask_cloud(CloudReason.REQUESTED, self.started))
        if not self.has_device:
            return self._then(self._ask_cloud(CloudReason.NO_DEVICE_MODEL, self.started))
        self._tries.begin(Source.DEVICE, self.started)
        self._device_until = self.started + self.policy.device_share
        if self.policy.mode is Mode.HEDGED and self.slow_after is not None:
            self._slow_at = self.started + self.slow_after
        return self._then([AskDevice()])

    def observe(self, observation: Observation, now: float) -> list[Action]:
        """Return the actions that follow from an observation at the time `now`."""
        if self._over:
            return []
        device, cloud = (self._tries.under_way(source) for source in (Source.DEVICE, Source.CLOUD))
        match observation:
            case DeviceAnswered(result) if device:
                return self._then(self._device_answered(result, now))
            case DeviceFailed(error) if device:
                return self._then(self._device_failed(error, CloudReason.DEVICE_FAILED, now))
            case CloudAnswered() if cloud:
                return self._then(self._cloud_answered(observation, now))
            case CloudFailed(error, may_retry) if cloud:
                return self._then(self._cloud_failed(error, now, may_retry=may_retry))
            case CloudRefused(error) if cloud:
                self._tries.forget(Source.CLOUD)
                self._cloud_error = error
                return self._then(self._without_cloud(now))
            case Woke():
                return self._then(self._woke(now))
        return []

    def _then(self, actions: list[Action]) -> list[Action]:
        """Return the actions, with a `WakeAt` if the next timer has changed."""
        if actions and isinstance(actions[-1], Finish | Fail):
            self._over = True
            return actions
        deadline = self._ends if self._tries.under_way(Source.CLOUD) else None
        timers = (self._device_until, self._slow_at, self._retry_at, deadline)
        wakes = min(at for at in timers if at is not None)
        if wakes != self._wakes or any(isinstance(action, AskCloud) for action in actions):
            self._wakes = wakes
            return [*actions, WakeAt(wakes)]
        return actions

    # Timers.

    def _woke(self, now: float) -> list[Action]:
        if self._retry_at is not None and now >= self._retry_at:
            return self._retry(now)
        if self._slow_at is not None and now >= self._slow_at:
            self._slow_at = None
            if self._enough_left(now):
                return self._ask_cloud(CloudReason.DEVICE_SLOW, now)
        if self._device_until is not None and now >= self._device_until:
            late = _late("DEVICE_TIMEOUT", "the device", self.policy.device_share)
            return [DropDevice(), *self._device_failed(late, CloudReason.DEVICE_TIMEOUT, now)]
        if self._tries.under_way(Source.CLOUD) and now >= self._ends:
            late = _late("DEADLINE_EXCEEDED", "the cloud", self.policy.timeout)
            self._tries.end(Source.CLOUD, now, late)
            self._cloud_error = late
            return [DropCloud(), *self._without_cloud(now)]
        return []

    def _retry(self, now: float) -> list[Action]:
        self._retry_at = None
        if now >= self._ends:  # on a busy device a timer fires late
            return self._without_cloud(now)
        self._retries += 1
        self._tries.begin(Source.CLOUD, now)
        return [AskCloud(self._ends)]

    # The device.

    def _device_answered(self, result: DetectorResult, now: float) -> list[Action]:
        self._device_done(now)
        try:
            unsure = self.policy.mode is Mode.CASCADE and self.policy.cascade.unsure(result)
        except Exception as error:  # noqa: BLE001 - the caller's own code
            return [Fail(error, self._tries.ended, None)]
        if not unsure:
            return [*self._cancel_cloud(now), self._finish(result, Source.DEVICE, now)]
        if self._enough_left(now):
            self._kept = result
            return self._ask_cloud(CloudReason.DEVICE_UNSURE, now)
        self._cloud_reason = CloudReason.DEVICE_UNSURE
        return [self._finish(result, Source.DEVICE, now, cloud_error=NO_TIME_LEFT)]

    def _device_failed(self, error: Exception, reason: CloudReason, now: float) -> list[Action]:
        self._device_done(now, error)
        self._device_error = error
        if _is_invalid_image(error):
            return [*self._cancel_cloud(now), Fail(error, self._tries.ended, Source.DEVICE)]
        if self._tries.under_way(Source.CLOUD) or self._retry_at is not None:
            return []
        no_cloud = self.policy.mode is Mode.DEVICE or self._cloud_reason is not None
        if no_cloud or not self._enough_left(now):
            return [Fail(error, self._tries.ended, Source.DEVICE, self._cloud_error)]
        return self._ask_cloud(reason, now)

    def _device_done(self, now: float, error: Exception | None = None) -> None:
        self._tries.end(Source.DEVICE, now, error)
        self._device_until = self._slow_at = None

    # The cloud.

    def _enough_left(self, now: float) -> bool:
        """Return True if enough of the budget is left to ask the cloud."""
        return self._ends - now >= self.policy.cloud_reserve and now < self._ends

    def _ask_cloud(self, reason: CloudReason, now: float) -> list[Action]:
        self._cloud_reason = reason
        self._tries.begin(Source.CLOUD, now)
        return [AskCloud(self._ends)]

    def _cloud_answered(self, answered: CloudAnswered, now: float) -> list[Action]:
        self._tries.end(Source.CLOUD, now)
        self._has_cloud_answered = True
        drop: list[Action] = []
        if self._tries.under_way(Source.DEVICE):
            self._device_done(now, _late("CLOUD_WAS_FIRST", "the device", now - self.started))
            drop = [DropDevice()]
        return [*drop, self._finish(answered.result, Source.CLOUD, now, answered=answered)]

    def _cloud_failed(self, error: SightlineError, now: float, *, may_retry: bool) -> list[Action]:
        self._tries.end(Source.CLOUD, now, error)
        self._cloud_error = error
        # Calls that this side cancels are not observed, so CANCELLED means that a server which is
        # shutting down has cancelled the call.
        retryable = error.retryable or error.code is grpc.StatusCode.CANCELLED
        if retryable and may_retry and not error.do_not_retry:
            wait = self.policy.backoff(self._retries + 1) + (error.retry_after or 0.0)
            # If no time is left after the wait, fail now instead of at the deadline.
            if now + wait < self._ends:
                self._retry_at = now + wait
                return []
        return self._without_cloud(now)

    def _without_cloud(self, now: float) -> list[Action]:
        """Return the actions after the cloud's last try has failed."""
        error = self._cloud_error
        if error is None:
            raise AssertionError("the last try at the cloud has ended, but there is no error")
        if self._kept is not None:
            return [self._finish(self._kept, Source.DEVICE, now, cloud_error=error.reason)]
        if self._tries.under_way(Source.DEVICE):
            return []
        return [Fail(error, self._tries.ended, Source.CLOUD, self._device_error)]

    def _cancel_cloud(self, now: float) -> list[Action]:
        """Cancel the cloud's try and retry, because the request has ended."""
        self._retry_at = None
        if not self._tries.under_way(Source.CLOUD):
            return []
        self._tries.end(Source.CLOUD, now, _late("DEVICE_WAS_FIRST", "the cloud", 0.0))
        self._cloud_error = None  # it was of an earlier try; the latest did not fail
        return [DropCloud()]

    def _finish(
        self,
        result: DetectorResult,
        source: Source,
        now: float,
        *,
        cloud_error: str = "",
        answered: CloudAnswered | None = None,
    ) -> Finish:
        if not cloud_error and source is Source.DEVICE and self._cloud_error is not None:
            cloud_error = self._cloud_error.reason  # hedged: the cloud failed before the device won
        return Finish(
            Answer(
                detections=result.detections,
                source=source,
                cloud_reason=self._cloud_reason,
                model_name=result.model_name,
                model_version=result.model_version,
                image_width=result.image_width,
                image_height=result.image_height,
                device_milliseconds=self._tries.milliseconds(Source.DEVICE),
                cloud_milliseconds=self._tries.milliseconds(Source.CLOUD),
                total_milliseconds=(now - self.started) * 1e3,
                attempts=self._tries.ended,
                idempotent_replayed=answered.replayed if answered else False,
                cloud_error=cloud_error,
                cloud_bytes=answered.bytes_sent if answered else 0,
                cloud_bytes_saved=answered.bytes_saved if answered else 0,
            )
        )


def _is_invalid_image(error: Exception) -> bool:
    """Return True if the cloud, which checks images by the same rules, would reject the image."""
    return isinstance(error, SightlineError) and error.category is Category.VALIDATION


def _late(reason: str, source: str, seconds: float) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.DEADLINE_EXCEEDED, reason, f"{source} did not answer within {seconds:.3f} s"
    )
