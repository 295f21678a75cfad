"""How a question is settled, and what its answer carries: the words of the coordinator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from edge.decide.backoff import full_jitter
from edge.records import CloudReason, Detection, Source

_TIMER_SLACK = 0.25  # seconds: a busy device wakes late, and the reserve must still be whole then


class Mode(StrEnum):
    """Who may answer."""

    AUTO = "auto"
    """The device; the cloud where the device fails, is late or has no model."""
    DEVICE = "device"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a question is settled.

    Attributes:
        mode: who may answer.
        timeout: the whole budget in seconds, > 0.
        cloud_reserve: seconds that must be left for the cloud to be asked, >= 0; in mode `auto`
            below `timeout`, and what the device may not use: it is stopped up to 0.1 s earlier.
        backoff: seconds to wait before retry 1, 2, ...; drawn anew at each call. A server's own
            `retry_after` is added to it.

    Raises:
        ValueError: a bound is broken; names the attribute.
    """

    mode: Mode = Mode.AUTO
    timeout: float = 8.0
    cloud_reserve: float = 1.0
    backoff: Callable[[int], float] = field(default_factory=full_jitter)

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

    @property
    def device_share(self) -> float:
        """Seconds that the device may take; what is left then covers the cloud's reserve."""
        if self.mode is Mode.DEVICE:
            return self.timeout
        free = self.timeout - self.cloud_reserve
        return free - min(_TIMER_SLACK, free / 4)


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


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer for one picture, where it came from and what it cost.

    Attributes:
        detections: most confident first; boxes in pixels of the upright picture. A
            classification has classes instead: detections without box.
        source: who answered.
        cloud_reason: why the cloud was asked; None: it was not.
        model_name: of the model that answered.
        model_version: empty: not known.
        image_width: of the upright picture in pixels; 0: not known.
        image_height: the same, downwards.
        device_milliseconds: until the device answered or was given up; None: it was not asked.
        cloud_milliseconds: from the first try to the cloud's answer, retries and waits included;
            None: it was not asked.
        total_milliseconds: of the whole budget.
        attempts: every try, in order; the last one answered.
        idempotent_replayed: the cloud gave the answer that an earlier try had got.
    """

    detections: tuple[Detection, ...]
    source: Source
    cloud_reason: CloudReason | None
    model_name: str
    model_version: str
    image_width: int
    image_height: int
    device_milliseconds: float | None
    cloud_milliseconds: float | None
    total_milliseconds: float
    attempts: tuple[Attempt, ...]
    idempotent_replayed: bool
