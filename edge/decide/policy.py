"""The policy of a coordinator: its mode, time budget, retries and circuit breaker."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from edge.backoff import full_jitter
from edge.detect.base import DetectorResult

_TIMER_SLACK = 0.25  # seconds: on a busy device timers fire late, and must not cut into the reserve


class Mode(StrEnum):
    """The mode of a coordinator: when the device and the cloud are asked.

    Example:
        >>> from sightline import Mode, Policy
        >>> Policy(mode=Mode("hedged")).mode is Mode.HEDGED
        True
    """

    AUTO = "auto"
    """The device first; the cloud if the device fails, is late or has no model."""
    DEVICE = "device"
    """Only the device."""
    CLOUD = "cloud"
    """Only the cloud."""
    CASCADE = "cascade"
    """Like `auto`, and the cloud if the device is unsure."""
    HEDGED = "hedged"
    """Like `auto`, and the cloud in parallel if the device is slower than its own 95th percentile.
    The first successful answer is returned."""


@dataclass(frozen=True)
class Cascade:
    """The conditions under which the device is unsure, so that mode `cascade` asks the cloud.

    Attributes:
        low: lower end of the band of confidences in which the device is unsure, in [0, 1].
        high: upper end of the band, in [`low`, 1]; both ends are inclusive.
        any: one detection in the band is enough; else the most confident one must be in the band.
        empty: the device is unsure if it detects nothing.
        rule: returns True if the device is unsure, and replaces the conditions above; None: they
            apply.

    Raises:
        ValueError: an attribute is out of range; the message names it.

    Example:
        >>> from sightline import Cascade, Detection, DetectorResult
        >>> cascade = Cascade(low=0.3, high=0.7)
        >>> sure = DetectorResult((Detection(0, "scratch", 0.9),), 640, 480, "parts")
        >>> unsure = DetectorResult((Detection(0, "scratch", 0.5),), 640, 480, "parts")
        >>> cascade.unsure(sure), cascade.unsure(unsure)
        (False, True)
    """

    low: float = 0.25
    high: float = 0.6
    any: bool = False
    empty: bool = False
    rule: Callable[[DetectorResult], bool] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ValueError(f"cascade low must be in [0, 1], got {self.low:g}")
        if not self.low <= self.high <= 1:
            raise ValueError(f"cascade high must be in [{self.low:g}, 1], got {self.high:g}")

    def unsure(self, result: DetectorResult) -> bool:
        """Return True if the cloud should be asked.

        Raises:
            Exception: `rule` raised it.
        """
        if self.rule is not None:
            return bool(self.rule(result))
        confidences = [detection.confidence for detection in result.detections]
        if not confidences:
            return self.empty
        relevant = confidences if self.any else [max(confidences)]
        return any(self.low <= confidence <= self.high for confidence in relevant)


@dataclass(frozen=True)
class Policy:
    """The mode, the time budget and the limits of a coordinator's requests.

    Attributes:
        mode: when the device and the cloud are asked.
        timeout: the time budget of a request in seconds, > 0.
        cloud_reserve: the part of the budget in seconds that is reserved for the cloud, >= 0 and
            below `timeout`, except in mode `device`. The cloud is asked only if this much is left;
            the device is stopped up to 0.25 s earlier.
        backoff: returns the seconds to wait before retry 1, 2, ... A server's `retry_after` is
            added.
        cascade: the conditions under which the device is unsure, for mode `cascade`.
        breaker_failures: consecutive requests that fail with a network error, a server error or a
            timeout until the circuit breaker opens, >= 1.
        breaker_seconds: time after which an open breaker permits one probe request, > 0.
        retry_tokens: number of retry tokens, >= 1. As in gRPC's retry throttling (proposal A6), a
            failed try removes a token, and nothing is retried while half of them or fewer are left.
        retry_token_ratio: fraction of a token that an answer of the cloud adds, > 0 and at most 1.
        takes_other_labels: accept answers of a cloud model whose labels differ from the device's
            in the modes `cascade` and `hedged`.
        cloud_label_map: the device's names for classes of the cloud, by the cloud's names.

    Raises:
        ValueError: an attribute is out of range; the message names it.

    Example:
        >>> from sightline import InferenceCoordinator, Mode, OnnxDetector, Policy
        >>> policy = Policy(mode=Mode.DEVICE, timeout=0.5)
        >>> with InferenceCoordinator(OnnxDetector("model.onnx"), None, policy) as coordinator:
        ...     answer = coordinator.ask("photo.jpg")
        >>> answer.total_milliseconds < 500
        True
    """

    mode: Mode = Mode.AUTO
    timeout: float = 8.0
    cloud_reserve: float = 1.0
    backoff: Callable[[int], float] = field(default_factory=full_jitter)
    cascade: Cascade = field(default_factory=Cascade)
    breaker_failures: int = 5
    breaker_seconds: float = 10.0
    retry_tokens: int = 30
    retry_token_ratio: float = 0.1
    takes_other_labels: bool = False
    cloud_label_map: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be above 0 seconds and finite, got {self.timeout:g}")
        if not self.cloud_reserve >= 0:
            raise ValueError(f"cloud_reserve must be >= 0 seconds, got {self.cloud_reserve:g}")
        if self.mode is not Mode.DEVICE and self.cloud_reserve >= self.timeout:
            raise ValueError(
                f"cloud_reserve must be below timeout ({self.timeout:g} s), "
                f"got {self.cloud_reserve:g} s"
            )
        if self.breaker_failures < 1:
            raise ValueError(f"breaker_failures must be >= 1, got {self.breaker_failures}")
        if not 0 < self.breaker_seconds < float("inf"):
            raise ValueError(
                f"breaker_seconds must be above 0 and finite, got {self.breaker_seconds:g}"
            )
        if self.retry_tokens < 1:
            raise ValueError(f"retry_tokens must be >= 1, got {self.retry_tokens}")
        if not 0 < self.retry_token_ratio <= 1:
            raise ValueError(f"retry_token_ratio must be in (0, 1], got {self.retry_token_ratio:g}")

    @property
    def device_share(self) -> float:
        """The seconds that the device may take, so that the cloud's reserve is left."""
        if self.mode is Mode.DEVICE:
            return self.timeout
        free = self.timeout - self.cloud_reserve
        return free - min(_TIMER_SLACK, free / 4)
