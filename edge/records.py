"""What a device says about one picture: plain, frozen records without a byte of protobuf or numpy.

The bounds named in the fields' docs are the server's. A record outside them is still made and
logged: the server keeps it whole as a rejected prediction. What could not be written down at all
(a value of the wrong type, a number or a text that the wire has no room for) is refused when the
record is made, with the field's name; so every record that exists can be logged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from edge.detections import Box, Detection, DetectionArrays
from edge.fields import INT32, choice, integer, number, text, wrong

__all__ = [
    "MAX_SIZE",
    "Box",
    "CloudReason",
    "Detection",
    "DetectionArrays",
    "Prediction",
    "Source",
]

MAX_SIZE = (4 << 20) - (64 << 10)
"""The largest `Prediction.size`, in bytes: less than one message of 4 MiB."""
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800  # what a Timestamp holds, in Unix seconds
_MAX_DURATION = 315_576_000_000  # what a Duration holds, in seconds


class Source(StrEnum):
    """Where a prediction was computed."""

    DEVICE = "device"
    CLOUD = "cloud"


class CloudReason(StrEnum):
    """Why the cloud was asked for a prediction."""

    REQUESTED = "requested"
    """The caller asked for the cloud."""
    DEVICE_FAILED = "device_failed"
    """The device's model raised an error."""
    DEVICE_TIMEOUT = "device_timeout"
    """The device's model did not answer within its share of the deadline."""
    DEVICE_UNSURE = "device_unsure"
    """The device's best confidence was in the band where the cloud decides."""
    DEVICE_SLOW = "device_slow"
    """The device was later than its own 95th percentile."""
    NO_DEVICE_MODEL = "no_device_model"
    """The device has no model."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Everything one model said about one picture."""

    image_id: str
    """The picture's name, chosen by the device, 1 to 512 bytes."""
    model_name: str
    """Name of the model that answered, 1 to 256 bytes."""
    model_version: str = field(default="", kw_only=True)
    """Version of that model, at most 256 bytes. Empty: not known."""
    image_width: int = field(default=0, kw_only=True)
    """Width of the upright picture in pixels, 0 to 65535. 0: not known."""
    image_height: int = field(default=0, kw_only=True)
    """Height of the upright picture in pixels, 0 to 65535. 0: not known."""
    source: Source = field(default=Source.DEVICE, kw_only=True)
    """Where the prediction was computed."""
    cloud_reason: CloudReason | None = field(default=None, kw_only=True)
    """Why the cloud was asked. None: it was not."""
    captured_at: float | None = field(default=None, kw_only=True)
    """When the picture was taken, Unix seconds by the device's clock. None: when it is logged."""
    inference_seconds: float | None = field(default=None, kw_only=True)
    """How long the model took for this picture, >= 0. None: not measured."""
    detections: Sequence[Detection] = field(default=(), kw_only=True)
    """What was found, best first as a rule, at most 10 000: kept as a tuple, or as
    `DetectionArrays`. Empty: nothing found."""
    defect_detected: bool | None = field(default=None, kw_only=True)
    """The verdict on the part in the picture. None: the device gives no verdict."""
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Free labels (line, shift, lot, ...), at most 64, keys and values at most 1024 bytes each."""
    trace_id: str = field(default="", kw_only=True)
    """W3C trace id, 32 lower-case hex digits. Empty: not traced."""
    size: int = field(init=False, repr=False, compare=False)
    """At least its bytes on the wire: 256, 64 a detection, 16 a label, 4 a character of text.
    At most `MAX_SIZE`."""

    def __post_init__(self) -> None:
        # A detector's loop waits for this: what is fine already is not set again.
        text("image_id", self.image_id)
        text("model_name", self.model_name)
        text("model_version", self.model_version)
        text("trace_id", self.trace_id)
        self._set("image_width", integer("image_width", self.image_width, INT32))
        self._set("image_height", integer("image_height", self.image_height, INT32))
        self._check_choices()
        self._check_times()
        if not isinstance(self.detections, tuple | DetectionArrays):
            self._set("detections", tuple(self.detections))
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "size", self._measure())

    def _set(self, name: str, value: object) -> None:
        if getattr(self, name) is not value:
            object.__setattr__(self, name, value)

    def _check_choices(self) -> None:
        if type(self.source) is not Source:
            self._set("source", choice(Source, "source", self.source))
        if self.cloud_reason is not None:
            self._set("cloud_reason", choice(CloudReason, "cloud_reason", self.cloud_reason))
        if self.defect_detected is not None:
            self._set("defect_detected", bool(self.defect_detected))

    def _check_times(self) -> None:
        if self.captured_at is not None:
            self._set("captured_at", number("captured_at", self.captured_at))
            if not _YEAR_1 <= self.captured_at < _YEAR_10000:
                raise wrong("captured_at", "Unix seconds in the years 1 to 9999", self.captured_at)
        if self.inference_seconds is not None:
            self._set("inference_seconds", number("inference_seconds", self.inference_seconds))
            if not abs(self.inference_seconds) <= _MAX_DURATION:
                bound = f"at most {_MAX_DURATION} seconds"
                raise wrong("inference_seconds", bound, self.inference_seconds)

    def _measure(self) -> int:
        """Return the size, having looked at everything that it is made of."""
        texts = len(self.image_id) + len(self.model_name) + len(self.model_version)
        texts += sum(map(len, _class_names(self.detections)))
        for key, value in self.labels.items():
            text("labels", key)
            text(f"labels[{key}]", value)
            texts += len(key) + len(value)
        texts += len(self.trace_id)
        size = 256 + 64 * len(self.detections) + 16 * len(self.labels) + 4 * texts
        if size > MAX_SIZE:
            parts = f"{len(self.detections)} detections and {texts} characters"
            raise ValueError(f"prediction must have a size of at most {MAX_SIZE} (got {parts})")
        return size


def _class_names(detections: Sequence[Detection]) -> Iterable[str]:
    if isinstance(detections, DetectionArrays):
        return detections.class_names
    for index, detection in enumerate(detections):
        if not isinstance(detection, Detection):
            raise wrong(f"detections[{index}]", "a Detection", detection)
    return [detection.class_name for detection in detections]
