"""Rotated boxes, keypoints and masks: the parts of a detection beside its axis-aligned box."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge import columns
from edge.columns import Array
from edge.fields import INT32, integer, number, text, wrong


@dataclass(frozen=True, slots=True)
class RotatedBox:
    """A box with any orientation, in pixels of the upright original image (task obb).

    Valid when all five are finite, the sides are >= 0 and the angle is in [-pi/4, 3*pi/4], the
    range of ultralytics' models; the detectors here return [0, pi/2). Stored as 32-bit floats.
    Its corners may lie outside of the image.

    Example:
        >>> from sightline import RotatedBox
        >>> box = RotatedBox(320, 240, 100, 50, angle=0.5)
        >>> box.width * box.height
        5000.0
    """

    center_x: float
    center_y: float
    width: float
    """Length of the first pair of sides."""
    height: float
    """Length of the second pair of sides."""
    angle: float
    """Radians from the x axis to the first pair of sides, clockwise as seen in the image."""

    def __post_init__(self) -> None:
        for name in ("center_x", "center_y", "width", "height", "angle"):
            object.__setattr__(self, name, number(name, getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Keypoint:
    """A point of an object, in pixels of the upright original image (task pose).

    Valid when the coordinates are finite; the point may lie outside of the image. Stored as 32-bit
    floats.

    Example:
        >>> from sightline import Keypoint
        >>> nose = Keypoint(120, 80, confidence=0.9)
        >>> nose.x, nose.y
        (120.0, 80.0)
    """

    x: float
    y: float
    confidence: float | None = None
    """The model's confidence that the point is visible, in [0, 1]. None: the model gives none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", number("x", self.x))
        object.__setattr__(self, "y", number("y", self.y))
        if self.confidence is not None:
            object.__setattr__(self, "confidence", number("confidence", self.confidence))


@dataclass(frozen=True, slots=True)
class Mask:
    """The pixels of an object (task segment): run lengths or polygons, exactly one of the two.

    Args:
        polygons: outlines of the parts of the object, each as points `[n, 2]` in pixels of the
            upright original image: an array of numpy or torch, or a list of pairs. At most 100,
            with 3 points each and 8192 in all. Stored as `array("f")` with x and y in turn.
        rle: COCO's compressed run-length encoding in column-major order, the text that pycocotools
            calls `counts`; at most 65 536 characters.
        width: width of the upright original image in pixels, 1 to 65535. Only with `rle`.
        height: height of the upright original image in pixels, 1 to 65535. Only with `rle`.

    Raises:
        ValueError: both forms or none of them were passed, or a value has the wrong type; the
            message begins with the name of the argument.

    Example:
        >>> from sightline import Mask
        >>> triangle = Mask(polygons=[[(10, 10), (50, 10), (30, 40)]])
        >>> triangle.polygons[0].tolist()
        [10.0, 10.0, 50.0, 10.0, 30.0, 40.0]
    """

    polygons: Sequence[Array] = ()
    rle: str = ""
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        text("rle", self.rle)
        for name in ("width", "height"):
            object.__setattr__(self, name, integer(name, getattr(self, name), INT32))
        object.__setattr__(self, "polygons", _polygons_of(self.polygons))
        if bool(self.polygons) == bool(self.rle):
            raise ValueError("polygons or rle must be passed, and not both")

    @property
    def size(self) -> int:
        """An upper bound for its bytes on the wire."""
        rle = len(self.rle) if self.rle.isascii() else 4 * len(self.rle)
        return 32 + rle + sum(10 + 4 * len(polygon) for polygon in self.polygons)

    def __hash__(self) -> int:
        # Not of their bytes: 0.0 and -0.0 are equal.
        return hash((tuple(map(tuple, self.polygons)), self.rle, self.width, self.height))


def _polygons_of(value: Iterable[Array]) -> "tuple[array[float], ...]":
    """Return copies of outlines, which may be in the form in which a mask stores them.

    Raises:
        ValueError: an item is neither points nor such an array, or contains NaN.
    """
    try:
        items = tuple(value)
    except TypeError as error:
        raise wrong("polygons", "a list of outlines", value) from error
    polygons = []
    for index, item in enumerate(items):
        is_stored = isinstance(item, array) and item.typecode == columns.FLOAT32
        name = f"polygons[{index}]"
        if is_stored and len(item) % 2:
            raise wrong(name, "x and y in turn", item)
        polygons.append(columns.floats(name, item, 1 if is_stored else 2))
    return tuple(polygons)


def keypoints_of(value: Iterable[Keypoint]) -> tuple[Keypoint, ...]:
    """Return keypoints as a tuple after checking their type.

    Raises:
        ValueError: an item is not a `Keypoint`.
    """
    try:
        points = tuple(value)
    except TypeError as error:
        raise wrong("keypoints", "a list of Keypoints", value) from error
    for index, point in enumerate(points):
        if not isinstance(point, Keypoint):
            raise wrong(f"keypoints[{index}]", "a Keypoint", point)
    return points


def masks_of(value: Iterable[Mask | None]) -> tuple[Mask | None, ...]:
    """Return masks as a tuple after checking their type.

    Raises:
        ValueError: an item is neither a `Mask` nor None.
    """
    try:
        masks = tuple(value)
    except TypeError as error:
        raise wrong("masks", "a list of Masks", value) from error
    for index, mask in enumerate(masks):
        if mask is not None and not isinstance(mask, Mask):
            raise wrong(f"masks[{index}]", "a Mask or None", mask)
    return masks
