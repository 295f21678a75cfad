"""Records of predictions: frozen dataclasses that need neither protobuf nor numpy.

The bounds in the fields' documentation are those of the server. A record outside them can be
created and logged; the server keeps it as a rejected prediction. A value that cannot be encoded at
all (a wrong type, a number that is too large, invalid text) raises an error that names the field
when the record is created. So every existing record can be logged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from edge.detections import Box, Detection, DetectionArrays, geometry_size
from edge.fields import INT32, choice, integer, number, text, wrong
from edge.geometry import Keypoint, Mask, RotatedBox

__all__ = [
    "MAX_SIZE",
    "Box",
    "CloudReason",
    "Detection",
    "DetectionArrays",
    "Keypoint",
    "Mask",
    "Prediction",
    "RotatedBox",
    "Source",
]

MAX_SIZE = (4 << 20) - (64 << 10)
"""Maximum `Prediction.size` in bytes, somewhat less than one message of 4 MiB."""
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800  # range of a Timestamp, in Unix seconds
_MAX_DURATION = 315_576_000_000  # range of a Duration, in seconds


class Source(StrEnum):
    """The place where a prediction was computed.

    Example:
        >>> from sightline import Prediction, Source
        >>> Prediction("photo.jpg", "parts").source is Source.DEVICE
        True
    """

    DEVICE = "device"
    CLOUD = "cloud"


class CloudReason(StrEnum):
    """The reason for a request to the cloud.

    Example:
        >>> from sightline import CloudReason, Prediction, Source
        >>> prediction = Prediction(
        ...     "photo.jpg", "parts", source=Source.CLOUD, cloud_reason=CloudReason.DEVICE_UNSURE
        ... )
        >>> print(prediction.cloud_reason)
        device_unsure
    """

    REQUESTED = "requested"
    """The caller requested the cloud."""
    DEVICE_FAILED = "device_failed"
    """The device's model raised an error."""
    DEVICE_TIMEOUT = "device_timeout"
    """The device's model did not answer within its share of the deadline."""
    DEVICE_UNSURE = "device_unsure"
    """The device's best confidence was in the range where the cloud decides."""
    DEVICE_SLOW = "device_slow"
    """The device was slower than its own 95th percentile."""
    NO_DEVICE_MODEL = "no_device_model"
    """The device has no model."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of one model for one image.

    Example:
        >>> from sightline import Box, Detection, Prediction
        >>> prediction = Prediction(
        ...     "gate-1/000042.jpg",
        ...     "parts",
        ...     model_version="7",
        ...     image_width=640,
        ...     image_height=480,
        ...     detections=[Detection(3, "scratch", 0.87, Box(10, 20, 110, 220))],
        ...     defect_detected=True,
        ...     labels={"line": "4"},
        ... )
        >>> prediction.detections[0].class_name
        'scratch'
    """

    image_id: str
    """Name of the image, chosen by the device, 1 to 512 bytes."""
    model_name: str
    """Name of the model, 1 to 256 bytes."""
    model_version: str = field(default="", kw_only=True)
    """Version of the model, at most 256 bytes. Empty: not known."""
    image_width: int = field(default=0, kw_only=True)
    """Width of the upright image in pixels, 0 to 65535. 0: not known."""
    image_height: int = field(default=0, kw_only=True)
    """Height of the upright image in pixels, 0 to 65535. 0: not known."""
    source: Source = field(default=Source.DEVICE, kw_only=True)
    """The place where the prediction was computed."""
    cloud_reason: CloudReason | None = field(default=None, kw_only=True)
    """The reason for the request to the cloud. None: there was no request."""
    captured_at: float | None = field(default=None, kw_only=True)
    """Time of capture in Unix seconds by the device's clock. None: the time of logging."""
    inference_seconds: float | None = field(default=None, kw_only=True)
    """Time that the model took for this image in seconds, >= 0. None: not measured."""
    detections: Sequence[Detection] = field(default=(), kw_only=True)
    """The detections, usually best first, at most 10 000. Stored as a tuple or as
    `DetectionArrays`. Empty: nothing was detected."""
    defect_detected: bool | None = field(default=None, kw_only=True)
    """True if the part in the image is defective. None: the device does not decide."""
    labels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Free labels (line, shift, lot, ...): at most 64, keys and values at most 1024 bytes each."""
    trace_id: str = field(default="", kw_only=True)
    """W3C trace id, 32 lower-case hex digits. Empty: not traced."""
    left_out: Mapping[str, int] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )
    """Number of parts of the model's result that this record could not hold, by kind; see
    `LoggerStats.left_out`. It is not stored. None: nothing was left out."""
    size: int = field(init=False, repr=False, compare=False)
    """An upper bound for its bytes on the wire: 256, plus 64 per detection, 28 per rotated box, 17
    per keypoint, `Mask.size` per mask, 16 per label and 4 per character of text. At most
    `MAX_SIZE`."""

    def __post_init__(self) -> None:
        # This is on the hot path of a detector's loop, so valid values are not set again.
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
        """Return the size, after validating all text."""
        texts = len(self.image_id) + len(self.model_name) + len(self.model_version)
        texts += sum(map(len, _class_names(self.detections)))
        for key, value in self.labels.items():
            text("labels", key)
            text(f"labels[{key}]", value)
            texts += len(key) + len(value)
        texts += len(self.trace_id)
        shapes = geometry_size(self.detections)
        size = 256 + 64 * len(self.detections) + shapes + 16 * len(self.labels) + 4 * texts
        if size > MAX_SIZE:
            parts = f"{size}: {len(self.detections)} detections and {texts} characters"
            parts += f", {shapes} bytes of masks, keypoints and rotated boxes" if shapes else ""
            raise ValueError(f"prediction must have a size of at most {MAX_SIZE} (got {parts})")
        return size


def _class_names(detections: Sequence[Detection]) -> Iterable[str]:
    if isinstance(detections, DetectionArrays):
        return detections.class_names
    for index, detection in enumerate(detections):
        if not isinstance(detection, Detection):
            raise wrong(f"detections[{index}]", "a Detection", detection)
    return [detection.class_name for detection in detections]
