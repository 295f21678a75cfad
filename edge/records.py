"""What a device says about one picture: plain, frozen records without a byte of protobuf or numpy.

The bounds named in the fields' docs are the server's. A record outside them is still made and
logged: the server keeps it whole as a rejected prediction. What could not be written down at all
(a value of the wrong type, a number or a text that the wire has no room for) is refused when the
record is made, with the field's name; so every record that exists can be logged.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

MAX_SIZE = (4 << 20) - (64 << 10)
"""The largest `Prediction.size`, in bytes: less than one message of 4 MiB."""
_INT32 = 1 << 31
_INT64 = 1 << 63
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800  # what a Timestamp holds, in Unix seconds
_MAX_DURATION = 315_576_000_000  # what a Duration holds, in seconds
_E = TypeVar("_E", bound=StrEnum)


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
class Box:
    """An axis-aligned box in pixels of the upright original picture, origin at the top left.

    Valid when all four are finite, 0 <= x_min <= x_max and 0 <= y_min <= y_max. Stored as 32-bit
    floats.
    """

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def __post_init__(self) -> None:
        if float is type(self.x_min) is type(self.y_min) is type(self.x_max) is type(self.y_max):
            return  # as good as always, and five times as fast
        for name in ("x_min", "y_min", "x_max", "y_max"):
            _float(self, name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found in a picture."""

    class_id: int
    """Index into the model's labels, >= 0."""
    class_name: str
    """The label of class_id, at most 256 bytes. Empty: the model has no labels."""
    confidence: float
    """The model's confidence in [0, 1]. Stored as a 32-bit float."""
    box: Box | None = None
    """Where the object is. None: the task has no boxes (a classification)."""
    track_id: int | None = None
    """Identity across frames, given by a tracker (64 bits, signed). None: not tracked."""

    def __post_init__(self) -> None:
        _integer(self, "class_id", self.class_id, _INT32)
        _text("class_name", self.class_name)
        _float(self, "confidence", self.confidence)
        if self.box is not None and not isinstance(self.box, Box):
            raise _wrong("box", "a Box or None", self.box)
        if self.track_id is not None:
            _integer(self, "track_id", self.track_id, _INT64)


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
    detections: tuple[Detection, ...] = field(default=(), kw_only=True)
    """What was found, best first as a rule, at most 10 000. Empty: nothing found."""
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
        for name in ("image_id", "model_name", "model_version", "trace_id"):
            _text(name, getattr(self, name))
        _integer(self, "image_width", self.image_width, _INT32)
        _integer(self, "image_height", self.image_height, _INT32)
        self._check_choices()
        self._check_times()
        object.__setattr__(self, "detections", tuple(self.detections))
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "size", self._measure())

    def _check_choices(self) -> None:
        object.__setattr__(self, "source", _choice(Source, "source", self.source))
        if self.cloud_reason is not None:
            reason = _choice(CloudReason, "cloud_reason", self.cloud_reason)
            object.__setattr__(self, "cloud_reason", reason)
        if self.defect_detected is not None:
            object.__setattr__(self, "defect_detected", bool(self.defect_detected))

    def _check_times(self) -> None:
        if self.captured_at is not None:
            _float(self, "captured_at", self.captured_at)
            if not _YEAR_1 <= self.captured_at < _YEAR_10000:
                raise _wrong("captured_at", "Unix seconds in the years 1 to 9999", self.captured_at)
        if self.inference_seconds is not None:
            _float(self, "inference_seconds", self.inference_seconds)
            if not abs(self.inference_seconds) <= _MAX_DURATION:
                bound = f"at most {_MAX_DURATION} seconds"
                raise _wrong("inference_seconds", bound, self.inference_seconds)

    def _measure(self) -> int:
        """Returns the size, having looked at everything that it is made of."""
        texts = len(self.image_id) + len(self.model_name) + len(self.model_version)
        for index, detection in enumerate(self.detections):
            if not isinstance(detection, Detection):
                raise _wrong(f"detections[{index}]", "a Detection", detection)
            texts += len(detection.class_name)
        for key, value in self.labels.items():
            _text("labels", key)
            _text(f"labels[{key}]", value)
            texts += len(key) + len(value)
        texts += len(self.trace_id)
        size = 256 + 64 * len(self.detections) + 16 * len(self.labels) + 4 * texts
        if size > MAX_SIZE:
            parts = f"{len(self.detections)} detections and {texts} characters"
            raise ValueError(f"prediction must have a size of at most {MAX_SIZE} (got {parts})")
        return size


def _float(record: object, name: str, value: object) -> None:
    """Makes a float of whatever number a library's arrays yield."""
    if type(value) is float:
        return
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise _wrong(name, "a number", value)
    try:
        object.__setattr__(record, name, value.__float__())
    except (OverflowError, ValueError, TypeError, RuntimeError) as error:
        raise _wrong(name, "a number", value) from error


def _integer(record: object, name: str, value: object, bound: int) -> None:
    if type(value) is not int:
        try:  # whatever has __index__ (numpy's integers), told by asking
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError as error:
            raise _wrong(name, "a whole number", value) from error
        object.__setattr__(record, name, value)
    if not -bound <= value < bound:
        raise _wrong(name, f"{-bound} to {bound - 1}", value)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(name, "text", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _wrong(name, "text without lone surrogates", value) from error


def _choice(choices: type[_E], name: str, value: str) -> _E:
    try:
        return choices(value)
    except ValueError as error:
        raise _wrong(name, "one of " + ", ".join(choices), value) from error


def _wrong(name: str, rule: str, value: object) -> ValueError:
    got = repr(value)
    return ValueError(f"{name} must be {rule} (got {got if len(got) <= 80 else got[:80] + '...'})")
