"""Conversion between supervision's objects and records, without importing it early."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from edge.detect.masks import around, mask_of
from edge.detect.result_columns import ModelNames, ResultColumns
from edge.detect.rotated_boxes import boxes_with, corners_of
from edge.geometry import Mask
from edge.log.fitting import detections_of, fitting
from edge.records import Detection, Prediction
from servicekit.mask_formats import POLYGON_TOLERANCE, MaskFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from supervision import Classifications, Detections, KeyPoints

_CORNERS = "xyxyxyxy"  # supervision's ORIENTED_BOX_COORDINATES
_TOP_K = 5  # classes, as of ultralytics' results


class HasDetections(Protocol):
    """An object with a `detections` attribute."""

    @property
    def detections(self) -> Sequence[Detection]:
        """The detections in one image."""


def is_supervision(candidate: object) -> "TypeGuard[Detections | KeyPoints | Classifications]":
    """Return True if an object looks like one of supervision's results."""
    return (
        _is_keypoints(candidate)
        or _is_classes(candidate)
        or all(hasattr(candidate, name) for name in ("xyxy", "class_id", "tracker_id", "data"))
    )


def _is_classes(candidate: object) -> "TypeGuard[Classifications]":
    return all(hasattr(candidate, name) for name in ("class_id", "confidence", "get_top_k"))


def _is_keypoints(candidate: object) -> "TypeGuard[KeyPoints]":
    return all(hasattr(candidate, name) for name in ("xy", "class_id", "data"))


def from_supervision(
    detections: "Detections | KeyPoints | Classifications",
    image_id: str,
    model_name: str,
    *,
    model_version: str = "",
    image_width: int = 0,
    image_height: int = 0,
    names: Mapping[int, str] | Sequence[str] | None = None,
    mask_format: MaskFormat = "polygon",
    polygon_tolerance: float = POLYGON_TOLERANCE,
) -> Prediction:
    """Return a prediction made from supervision's `Detections`, which do not name their image.

    A value that is not as it should be does not end the program; see `from_ultralytics`.

    Args:
        detections: detections with `confidence` and `class_id`, and with `mask` and the corners of
            oriented boxes in `data["xyxyxyxy"]`, if present. A `tracker_id` of -1 means that the
            object is not tracked. Or `KeyPoints` with `class_id`. An object's confidence is then
            `detection_confidence`, or else the mean of `keypoint_confidence`, and its box is that
            around those points that are visible and not at (0, 0). Or `Classifications`, whose
            five best classes become detections without a box.
        image_id: name of the image.
        model_name: name of the model.
        model_version: version of the model. Empty: not known.
        image_width: width in pixels. 0: that of the masks, or not known.
        image_height: height in pixels. 0: that of the masks, or not known.
        names: the model's labels by class_id. None: those in `data["class_name"]`, if present.
        mask_format: format of the masks: `polygon`, `rle` (COCO's run lengths, which are exact and
            keep holes) or `off`.
        polygon_tolerance: largest distance between a polygon and the outline of its mask in pixels.

    Raises:
        ValueError: the confidence or `class_id` of at least one detection is missing, or another
            argument is wrong; see `Prediction`.

    Example:
        >>> import numpy as np
        >>> from sightline import from_supervision
        >>> from supervision import Detections
        >>> detections = Detections(
        ...     xyxy=np.array([[10.0, 20.0, 110.0, 220.0]]),
        ...     confidence=np.array([0.9]),
        ...     class_id=np.array([0]),
        ... )
        >>> prediction = from_supervision(detections, "photo.jpg", "parts", names=["part"])
        >>> prediction.detections[0].class_name
        'part'
    """
    left_out: Counter[str] = Counter()
    if _is_classes(detections):
        return Prediction(
            image_id,
            model_name,
            model_version=model_version,
            image_width=image_width,
            image_height=image_height,
            detections=_of_classes(detections, names, left_out),
            left_out=left_out or None,
        )
    bitmaps = getattr(detections, "mask", None)
    if bitmaps is not None:
        image_height = image_height or int(bitmaps.shape[1])
        image_width = image_width or int(bitmaps.shape[2])
    labels = {
        "names": None if names is None else ModelNames(names),
        "class_name": detections.data.get("class_name") if names is None else None,
    }
    columns = None
    if not len(detections):  # supervision's own empty ones have neither class nor confidence
        pass
    elif _is_keypoints(detections):
        columns = _of_keypoints(detections, labels)
    else:
        size = image_width or math.inf, image_height or math.inf
        columns = _of_detections(detections, size, labels, mask_format, polygon_tolerance)

    def record(rows: Sequence[Detection]) -> Prediction:
        return Prediction(
            image_id,
            model_name,
            model_version=model_version,
            image_width=image_width,
            image_height=image_height,
            detections=rows,
            left_out=left_out or None,
        )

    rows = () if columns is None else detections_of(columns, left_out)
    return fitting(record, rows, left_out)


def _of_classes(
    classes: "Classifications",
    names: Mapping[int, str] | Sequence[str] | None,
    left_out: Counter[str],
) -> list[Detection]:
    """Return the best classes, most probable first, and count those that no record can hold."""
    class_id, confidence = (part.tolist() for part in _required(classes, "class_id", "confidence"))
    best = sorted(range(len(class_id)), key=confidence.__getitem__, reverse=True)[:_TOP_K]
    labels = ModelNames(names or {})
    found = []
    for row in best:
        try:
            found.append(Detection(class_id[row], labels[class_id[row]], confidence[row]))
        except ValueError:  # a class beyond 32 bits
            left_out["detection"] += 1
    return found


def _required(detections: object, *names: str) -> "list[NDArray[Any]]":
    for name in names:
        if getattr(detections, name) is None:
            raise ValueError(f"detections.{name} must be an array (got None)")
    return [getattr(detections, name) for name in names]


def _of_detections(
    detections: "Detections",
    size: tuple[float, float],
    labels: Mapping[str, Any],
    mask_format: MaskFormat,
    polygon_tolerance: float,
) -> ResultColumns:
    confidence, class_id = _required(detections, "confidence", "class_id")
    tracks: Sequence[Any] | None = detections.tracker_id
    if tracks is not None and any(track is None or track < 0 for track in tracks):
        tracks = [None if track is None or track < 0 else track for track in tracks]
        tracks = None if all(track is None for track in tracks) else tracks
    corners = detections.data.get(_CORNERS)
    bitmaps = None if mask_format == "off" else detections.mask
    return ResultColumns(
        boxes=detections.xyxy.clip(0, (*size, *size)),  # trackers' boxes exceed the image
        confidence=confidence,
        class_id=class_id,
        track_id=tracks,
        rotated=None if corners is None else boxes_with(corners),
        masks=None
        if bitmaps is None
        else lambda left_out: [
            mask_of(_cut(bitmaps, row), bitmaps.shape[1:], mask_format, polygon_tolerance, left_out)
            for row in range(len(bitmaps))
        ],
        **labels,
    )


def _cut(bitmaps: Any, row: int) -> "tuple[NDArray[Any], int, int] | None":  # noqa: ANN401
    """Return the pixels around an object in a dense array or in supervision's `CompactMask`."""
    if not hasattr(bitmaps, "crop"):
        return around(bitmaps[row])
    left, top = (int(side) for side in bitmaps.offsets[row])
    pixels = bitmaps.crop(row)
    return (pixels, left, top) if pixels.any() else None


def _of_keypoints(points: "KeyPoints", labels: Mapping[str, Any]) -> ResultColumns:
    import numpy as np

    (class_id,) = _required(points, "class_id")
    scores, confidence = points.keypoint_confidence, points.detection_confidence
    if confidence is None:  # as supervision's `as_detections`
        (confidence,) = _required(points, "keypoint_confidence")
        confidence = confidence.mean(axis=1)
    xy = points.xy
    known = (xy != 0).any(axis=2, keepdims=True)
    if points.visible is not None:
        known &= points.visible[..., None]
    low = np.where(known, xy, np.inf).min(axis=1, initial=np.inf)
    high = np.where(known, xy, -np.inf).max(axis=1, initial=-np.inf)
    boxes = np.concatenate([low, high], axis=1)
    boxes[~np.isfinite(boxes).all(axis=1)] = 0
    return ResultColumns(
        boxes=boxes.clip(0),
        confidence=confidence,
        class_id=class_id,
        keypoints=xy if scores is None else np.concatenate([xy, scores[..., None]], axis=2),
        **labels,
    )


def to_supervision(
    detections: "Sequence[Detection] | HasDetections",
    *,
    image_width: int = 0,
    image_height: int = 0,
) -> "Detections":
    """Return detections as supervision's `Detections`, in their order.

    `to_supervision_keypoints` returns their keypoints, which supervision keeps apart.

    Args:
        detections: detections with boxes, or an object that has them: an `Answer`, a
            `DetectorResult`, an `InferAnswer` or a `Prediction`.
        image_width: width of the image in pixels, for masks. 0: that of the object.
        image_height: height of the image in pixels, for masks. 0: that of the object.

    Returns:
        Detections with `confidence`, `class_id` and `data["class_name"]`. If at least one is
        tracked, also with `tracker_id`, which is -1 for the others. Likewise `mask`, bool
        `[n, height, width]`, which is empty for the others, and `data["xyxyxyxy"]`, the corners of
        oriented boxes, which are those of the box for the others.

    Raises:
        ModuleNotFoundError: supervision is not installed.
        ValueError: a detection has no box, such as that of a classifier, or it has a mask and the
            size of the image is not known.

    Example:
        >>> from sightline import Box, Detection, Prediction, to_supervision
        >>> scratch = Detection(3, "scratch", 0.875, Box(10, 20, 110, 220))
        >>> detections = to_supervision(Prediction("photo.jpg", "parts", detections=[scratch]))
        >>> detections.xyxy.tolist(), detections.confidence.tolist()
        ([[10.0, 20.0, 110.0, 220.0]], [0.875])
    """
    import numpy as np
    from supervision import Detections

    rows = _rows(detections)
    tracks = [-1 if row.track_id is None else row.track_id for row in rows]
    data: dict[str, Any] = {"class_name": np.array([row.class_name for row in rows], str)}
    if any(row.rotated_box is not None for row in rows):
        data[_CORNERS] = corners_of(np.array([_oriented(row) for row in rows], np.float32))
    width = image_width or getattr(detections, "image_width", 0)
    height = image_height or getattr(detections, "image_height", 0)
    return Detections(
        xyxy=np.array([_corners(row) for row in rows], np.float32).reshape(-1, 4),
        mask=_dense([row.mask for row in rows], width, height),
        confidence=np.array([row.confidence for row in rows], np.float32),
        class_id=np.array([row.class_id for row in rows], int),
        tracker_id=np.array(tracks, int) if any(row.track_id is not None for row in rows) else None,
        data=data,
    )


def to_supervision_keypoints(detections: "Sequence[Detection] | HasDetections") -> "KeyPoints":
    """Return the keypoints of detections as supervision's `KeyPoints`, in their order.

    Args:
        detections: detections with as many keypoints each, or an object that has them; see
            `to_supervision`.

    Returns:
        Keypoints with `class_id`, `detection_confidence` and `data["class_name"]`, and with
        `keypoint_confidence` unless a point has none.

    Raises:
        ModuleNotFoundError: supervision is not installed, or older than 0.29.
        ValueError: the detections have different numbers of keypoints.

    Example:
        >>> from sightline import Box, Detection, Keypoint, to_supervision_keypoints
        >>> eyes = (Keypoint(120, 80, 0.75), Keypoint(140, 80, 0.5))
        >>> person = Detection(0, "person", 0.875, Box(100, 50, 200, 400), keypoints=eyes)
        >>> to_supervision_keypoints([person]).xy.tolist()
        [[[120.0, 80.0], [140.0, 80.0]]]
    """
    import numpy as np
    from supervision import KeyPoints

    rows = _rows(detections)
    counts = {len(row.keypoints) for row in rows}
    if len(counts) > 1:
        raise ValueError(f"keypoints must be as many in each detection (got {sorted(counts)})")
    shape = (len(rows), *counts) if counts else (0, 0)
    points = [point for row in rows for point in row.keypoints]
    scores = [point.confidence for point in points]
    return KeyPoints(
        xy=np.array([(point.x, point.y) for point in points], np.float32).reshape(*shape, 2),
        class_id=np.array([row.class_id for row in rows], int),
        keypoint_confidence=None if None in scores else np.array(scores, np.float32).reshape(shape),
        detection_confidence=np.array([row.confidence for row in rows], np.float32),
        data={"class_name": np.array([row.class_name for row in rows], str)},
    )


def _rows(detections: "Sequence[Detection] | HasDetections") -> list[Detection]:
    return list(detections if isinstance(detections, Sequence) else detections.detections)


def _corners(row: Detection) -> tuple[float, float, float, float]:
    if row.box is None:
        raise ValueError("box must not be None: supervision's Detections consist of boxes")
    return row.box.x_min, row.box.y_min, row.box.x_max, row.box.y_max


def _oriented(row: Detection) -> tuple[float, float, float, float, float]:
    turned = row.rotated_box
    if turned is not None:
        return turned.center_x, turned.center_y, turned.width, turned.height, turned.angle
    left, top, right, bottom = _corners(row)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0.0


def _dense(masks: Sequence[Mask | None], width: int, height: int) -> "NDArray[Any] | None":
    """Return masks as bool `[n, height, width]`; None if there are none."""
    import numpy as np

    sizes = {(mask.width, mask.height) for mask in masks if mask is not None and mask.rle}
    if not (width and height) and len(sizes) == 1:
        ((width, height),) = sizes
    if all(mask is None for mask in masks):
        return None
    if not (width and height) or sizes - {(width, height)}:
        raise ValueError(
            "image_width and image_height must be the size of the image, which masks need "
            f"(got {width} x {height}, and run lengths of {sorted(sizes)})"
        )
    dense = np.zeros((len(masks), height, width), bool)
    for row, mask in zip(dense, masks, strict=True):
        if mask is not None:
            _draw(mask, row)
    return dense


def _draw(mask: Mask, pixels: "NDArray[Any]") -> None:
    """Set the pixels `[height, width]` of a mask to True."""
    import numpy as np
    from supervision import polygon_to_mask

    from vision.masks import RleMask, decode_rle

    height, width = pixels.shape
    if mask.rle:
        pixels |= decode_rle(RleMask(height, width, mask.rle))
    for polygon in mask.polygons:
        points = np.reshape(polygon, (-1, 2))
        pixels |= polygon_to_mask(points, (width, height)).astype(bool)
