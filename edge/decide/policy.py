"""How requests are settled: who may answer, how long it may take, when the cloud is left alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from edge.backoff import full_jitter
from edge.detect.base import DetectorResult

_TIMER_SLACK = 0.25  # seconds: a busy device wakes late, and the reserve must still be whole then


class Mode(StrEnum):
    """Who may answer.

    Example:
        >>> from sightline import Mode, Policy
        >>> Policy(mode=Mode("hedged")).mode is Mode.HEDGED
        True
    """

    AUTO = "auto"
    """The device; the cloud where the device fails, is late or has no model."""
    DEVICE = "device"
    CLOUD = "cloud"
    CASCADE = "cascade"
    """As auto; and the cloud where the device is unsure."""
    HEDGED = "hedged"
    """As auto; and the cloud beside the device where that is later than it mostly is. The first
    good answer counts."""


@dataclass(frozen=True)
class Cascade:
    """When the device is unsure of an image, so that the cloud is asked in mode `cascade`.

    Attributes:
        low: lower end of the band of confidences in which the device is unsure, in [0, 1].
        high: upper end, in [`low`, 1]; both ends are in the band.
        any: whether one detection in the band is enough; else the most confident one must be in it.
        empty: whether the device is unsure of an image in which it finds nothing.
        rule: says in place of all this whether the device is unsure; None: the band does.

    Raises:
        ValueError: a bound is broken; names the attribute.

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
            raise ValueError(f"cascade low must be in [0, 1], is {self.low:g}")
        if not self.low <= self.high <= 1:
            raise ValueError(f"cascade high must be in [{self.low:g}, 1], is {self.high:g}")

    def unsure(self, result: DetectorResult) -> bool:
        """Return whether the cloud should be asked.

        Raises:
            Exception: whatever `rule` raises.
        """
        if self.rule is not None:
            return bool(self.rule(result))
        confidences = [found.confidence for found in result.detections]
        if not confidences:
            return self.empty
        asked = confidences if self.any else [max(confidences)]
        return any(self.low <= confidence <= self.high for confidence in asked)


@dataclass(frozen=True)
class Policy:
    """How a request is settled.

    Attributes:
        mode: who may answer.
        timeout: the whole budget in seconds, > 0.
        cloud_reserve: seconds that must be left for the cloud to be asked, >= 0; but in mode
            `device` below `timeout`, and what the device may not use: it is stopped up to 0.25 s
            earlier.
        backoff: seconds to wait before retry 1, 2, ...; drawn anew at each call. A server's own
            `retry_after` is added to it.
        cascade: when the device is unsure, in mode `cascade`.
        breaker_failures: requests in a row that the cloud fails, with errors of the network, the
            server or by being late, until it is left alone, >= 1.
        breaker_seconds: how long it is left alone before one request tries again, > 0.
        retry_tokens: as gRPC's retry throttling (proposal A6): each failed try takes one of so
            many tokens, and while half or less are left nothing is retried, >= 1.
        retry_token_ratio: what an answer gives back of a token, > 0 and at most 1.
        takes_other_labels: whether an answer of the cloud is taken in the modes `cascade` and
            `hedged` although its model has other labels than the device's.
        cloud_label_map: the device's name for classes that the cloud calls otherwise.

    Raises:
        ValueError: a bound is broken; names the attribute.

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
            raise ValueError(f"timeout must be above 0 seconds and finite, is {self.timeout:g}")
        if not self.cloud_reserve >= 0:
            raise ValueError(f"cloud_reserve must be >= 0 seconds, is {self.cloud_reserve:g}")
        if self.mode is not Mode.DEVICE and self.cloud_reserve >= self.timeout:
            raise ValueError(
                f"cloud_reserve must be below timeout ({self.timeout:g} s), "
                f"is {self.cloud_reserve:g} s"
            )
        if self.breaker_failures < 1:
            raise ValueError(f"breaker_failures must be >= 1, is {self.breaker_failures}")
        if not 0 < self.breaker_seconds < float("inf"):
            raise ValueError(
                f"breaker_seconds must be above 0 and finite, is {self.breaker_seconds:g}"
            )
        if self.retry_tokens < 1:
            raise ValueError(f"retry_tokens must be >= 1, is {self.retry_tokens}")
        if not 0 < self.retry_token_ratio <= 1:
            raise ValueError(f"retry_token_ratio must be in (0, 1], is {self.retry_token_ratio:g}")

    @property
    def device_share(self) -> float:
        """Seconds that the device may take; what is left then covers the cloud's reserve."""
        if self.mode is Mode.DEVICE:
            return self.timeout
        free = self.timeout - self.cloud_reserve
        return free - min(_TIMER_SLACK, free / 4)
