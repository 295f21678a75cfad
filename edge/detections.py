"""Detections in one image, as single objects or as arrays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from edge import columns
from edge.columns import Array
from edge.fields import INT32, INT64, integer, number, text, wrong
from edge.geometry import Keypoint, Mask, RotatedBox, keypoints_of, masks_of

_ROTATED_BOX_BYTES, _KEYPOINT_BYTES = 28, 17


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box in pixels of the upright original image, with the origin at the top left.

    Valid when all four are finite, 0 <= x_min <= x_max and 0 <= y_min <= y_max. Stored as 32-bit
    floats.

    Example:
        >>> from sightline import Box
        >>> box = Box(10, 20, 110, 220)
        >>> (box.x_max - box.x_min) * (box.y_max - box.y_min)
        20000.0
    """

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def __post_init__(self) -> None:
        if float is type(self.x_min) is type(self.y_min) is type(self.x_max) is type(self.y_max):
            return  # the usual case, five times as fast
        for name in ("x_min", "y_min", "x_max", "y_max"):
            object.__setattr__(self, name, number(name, getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Detection:
    """One object detected in an image.

    Example:
        >>> from sightline import Box, Detection
        >>> scratch = Detection(3, "scratch", 0.87, Box(10, 20, 110, 220))
        >>> print(f"{scratch.class_name} {scratch.confidence:.0%} at x = {scratch.box.x_min:g}")
        scratch 87% at x = 10
    """

    class_id: int
    """Index into the model's labels, >= 0."""
    class_name: str
    """The label of class_id, at most 256 bytes. Empty: the model has no labels."""
    confidence: float
    """The model's confidence in [0, 1]. Stored as a 32-bit float."""
    box: Box | None = None
    """The object's box. None: the task has no boxes (classification)."""
    track_id: int | None = None
    """Identity across frames, assigned by a tracker (signed 64-bit integer). None: not tracked."""
    rotated_box: RotatedBox | None = field(default=None, kw_only=True)
    """The object's position and orientation (task obb). None: the task has no orientation."""
    keypoints: Sequence[Keypoint] = field(default=(), kw_only=True)
    """The object's points in the order of the model's skeleton (task pose), at most 1000. Stored as
    a tuple."""
    mask: Mask | None = field(default=None, kw_only=True)
    """The object's pixels (task segment). None: the task has no masks, or they were turned off."""

    def __post_init__(self) -> None:
        text("class_name", self.class_name)
        if not (type(self.class_id) is int and -INT32 <= self.class_id < INT32):
            object.__setattr__(self, "class_id", integer("class_id", self.class_id, INT32))
        if type(self.confidence) is not float:
            object.__setattr__(self, "confidence", number("confidence", self.confidence))
        if self.box is not None and not isinstance(self.box, Box):
            raise wrong("box", "a Box or None", self.box)
        if self.track_id is not None:
            object.__setattr__(self, "track_id", integer("track_id", self.track_id, INT64))
        if self.rotated_box is not None and not isinstance(self.rotated_box, RotatedBox):
            raise wrong("rotated_box", "a RotatedBox or None", self.rotated_box)
        if self.keypoints != ():
            object.__setattr__(self, "keypoints", keypoints_of(self.keypoints))
        if self.mask is not None and not isinstance(self.mask, Mask):
            raise wrong("mask", "a Mask or None", self.mask)


class DetectionArrays(Sequence[Detection]):
    """The detections of one image as arrays, for `Prediction.detections` without single objects.

    Accepts arrays of numpy, torch (on any device) and `array`, and plain lists. All values are
    copied, with 32 bits where the wire format has 32 bits, so the arrays may be reused. As a
    sequence, it yields a `Detection` for each row.

    Args:
        xyxy: boxes `[n, 4]` as x_min, y_min, x_max, y_max; see `Box`.
        confidence: `[n]`; see `Detection.confidence`.
        class_id: `[n]`, signed 32-bit integers.
        track_id: `[n]`, signed 64-bit integers. None: not tracked.
        names: the model's labels by class_id, as ultralytics' `model.names` or a list.
        class_name: `[n]`, the label of each row, instead of `names`.
        rotated_boxes: `[n, 5]` as center_x, center_y, width, height, angle; see `RotatedBox`. None:
            the task has no orientation.
        keypoints: `[n, k, 3]` as x, y, confidence, or `[n, k, 2]` without confidence; see
            `Keypoint`. None: the task has no keypoints.
        masks: `[n]`, a `Mask` or None for each row. None: no masks.

    Raises:
        ValueError: an argument has a wrong shape or length, contains NaN or an invalid number, or
            `names` lacks a class. The message begins with the name of the argument.

    Example:
        >>> import numpy as np
        >>> from sightline import DetectionArrays, Prediction
        >>> found = DetectionArrays(
        ...     xyxy=np.array([[10, 20, 110, 220]], np.float32),
        ...     confidence=np.array([0.75], np.float32),
        ...     class_id=np.array([1]),
        ...     names=["dent", "scratch"],
        ... )
        >>> prediction = Prediction("photo.jpg", "parts", detections=found)
        >>> found[0].class_name, found[0].confidence
        ('scratch', 0.75)
    """

    __slots__ = (
        "boxes",
        "class_ids",
        "class_names",
        "confidences",
        "keypoint_shape",
        "keypoints",
        "masks",
        "rotated_boxes",
        "track_ids",
    )

    def __init__(
        self,
        xyxy: Array,
        confidence: Array,
        class_id: Array,
        *,
        track_id: Array = None,
        names: Mapping[int, str] | Sequence[str] | None = None,
        class_name: Iterable[str] | None = None,
        rotated_boxes: Array = None,
        keypoints: Array = None,
        masks: Iterable[Mask | None] | None = None,
    ) -> None:
        self.boxes = columns.floats("xyxy", xyxy, 4)
        count = len(self.boxes) // 4
        self.confidences = columns.of_length(
            count, "confidence", columns.floats("confidence", confidence, 1)
        )
        self.class_ids = columns.of_length(
            count, "class_id", columns.integers("class_id", class_id, columns.INT32)
        )
        self.track_ids = None
        if track_id is not None:
            self.track_ids = columns.of_length(
                count, "track_id", columns.integers("track_id", track_id, columns.INT64)
            )
        if class_name is None:
            self.class_names = columns.labels(names, self.class_ids)
        elif names is None:
            self.class_names = columns.of_length(count, "class_name", columns.texts(class_name))
        else:
            raise ValueError("class_name must be None if names are passed (got both)")
        self.rotated_boxes = None
        if rotated_boxes is not None:
            rows = columns.floats("rotated_boxes", rotated_boxes, 5)
            columns.of_length(count, "rotated_boxes", range(len(rows) // 5))
            self.rotated_boxes = rows
        self.keypoints, self.keypoint_shape = None, (0, 0)
        if keypoints is not None:
            self.keypoints, self.keypoint_shape = columns.points("keypoints", keypoints, count)
        self.masks = None
        if masks is not None:
            self.masks = columns.of_length(count, "masks", masks_of(masks))

    def __len__(self) -> int:
        return len(self.class_ids)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Detection, ...]: ...
    def __getitem__(self, index: int | slice) -> Detection | tuple[Detection, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        row = range(len(self))[index]
        tracks = self.track_ids
        return Detection(
            self.class_ids[row],
            self.class_names[row],
            self.confidences[row],
            Box(*self.boxes[4 * row : 4 * row + 4]),
            None if tracks is None else tracks[row],
            rotated_box=self._rotated_box(row),
            keypoints=self._keypoints(row),
            mask=None if self.masks is None else self.masks[row],
        )

    def _rotated_box(self, row: int) -> RotatedBox | None:
        if self.rotated_boxes is None:
            return None
        return RotatedBox(*self.rotated_boxes[5 * row : 5 * row + 5])

    def _keypoints(self, row: int) -> tuple[Keypoint, ...]:
        if self.keypoints is None:
            return ()
        points, width = self.keypoint_shape
        at = row * points * width
        return tuple(
            Keypoint(*self.keypoints[start : start + width])
            for start in range(at, at + points * width, width)
        )

    def __iter__(self) -> Iterator[Detection]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DetectionArrays | tuple):
            return tuple(self) == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<DetectionArrays of {len(self)}>"


def geometry_size(detections: Sequence[Detection]) -> int:
    """Return an upper bound for the bytes on the wire of all rotated boxes, keypoints and masks."""
    if not isinstance(detections, DetectionArrays):
        size = 0  # on the hot path of a detector's loop: a generator would take longer
        for item in detections:
            if item.mask is not None or item.keypoints or item.rotated_box is not None:
                size += _size_of(item)
        return size
    rotated = 0 if detections.rotated_boxes is None else len(detections)
    points = len(detections) * detections.keypoint_shape[0]
    masks = detections.masks or ()
    return (
        _ROTATED_BOX_BYTES * rotated
        + _KEYPOINT_BYTES * points
        + sum(mask.size for mask in masks if mask is not None)
    )


def _size_of(detection: Detection) -> int:
    rotated = 0 if detection.rotated_box is None else _ROTATED_BOX_BYTES
    mask = 0 if detection.mask is None else detection.mask.size
    return rotated + _KEYPOINT_BYTES * len(detection.keypoints) + mask
