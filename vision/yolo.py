"""Decoding of a detector's output into objects, for each layout and each task."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from servicekit.mask_formats import MaskFormat
from vision.detections import Detections
from vision.errors import ModelError
from vision.layouts import ROUNDING, Layout
from vision.letterbox import Letterbox
from vision.masks import (
    OnMask,
    PolygonMask,
    RleMask,
    encode_rle,
    keep_mask,
    trace_polygons,
)
from vision.prototypes import crop_masks
from vision.rotated import hull, regularize
from vision.suppress import suppress_boxes, suppress_rotated

_MAX_CANDIDATES = 30_000  # boxes that enter NMS, best first; ultralytics' max_nms


@dataclass(frozen=True, slots=True)
class YoloHead:
    """The meaning of the columns of a detector's output.

    Attributes:
        layout: of the output.
        n_classes: number of classes.
        task: ``detect``, ``segment``, ``pose`` or ``obb``.
        extra: columns of the task: mask coefficients, keypoints or the angle.
        keypoint_shape: keypoints of an object, and values of a keypoint, 2 or 3.
    """

    layout: Layout
    n_classes: int
    task: str = "detect"
    extra: int = 0
    keypoint_shape: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Found:
    """Objects in pixels of the input, most confident first.

    Attributes:
        boxes: ``[N, 4]``, corners; centre and size if the boxes are rotated.
        confidence: ``[N]``.
        class_id: ``[N]``.
        extra: ``[N, E]``, the columns of the task.
    """

    boxes: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]
    extra: NDArray[np.float32]


def decode_output(
    head: YoloHead,
    output: NDArray[np.float32],
    box: Letterbox,
    input_size: tuple[int, int],
    *,
    confidence: float = 0.25,
    iou: float = 0.7,
    max_detections: int = 300,
    prototypes: NDArray[np.float32] | None = None,
    mask_format: MaskFormat = "off",
    tolerance: float = 1.0,
    on_mask: OnMask = keep_mask,
) -> Detections:
    """Decode one image's output in any layout, of any task.

    Args:
        head: the meaning of the output's columns.
        output: in the shape of the layout, without the batch.
        box: position of the image in the input.
        input_size: height and width of the input, in pixels.
        confidence: threshold in 0..1; detections must be above it.
        iou: threshold in 0..1; a box that overlaps a more confident one of its class by more is
            dropped. No effect on a layout without NMS.
        max_detections: at least 1.
        prototypes: of a segmentation model, ``[C, h, w]``; needed for masks.
        mask_format: format of the masks; no effect on other tasks than ``segment``.
        tolerance: of polygons, in pixels; see `trace_polygons`.
        on_mask: is called with each mask as soon as it is made, and returns the one to keep. What
            it raises ends the decoding: thousands of masks of a large image take minutes.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, a score above 1 or an unknown class in
            a score or in a detection; ``MODEL_UNSUPPORTED``: polygons without OpenCV.
        ValueError: a parameter out of its range, which it names.
    """
    _check_parameters(confidence, iou, max_detections)
    match head.layout:
        case Layout.YOLOV8:
            found = _find_yolov8(head, output, confidence, iou, max_detections)
        case Layout.YOLOV5:
            found = _find_yolov5(head, output, confidence, iou, max_detections)
        case Layout.END_TO_END:
            found = _find_ranked(head, output, confidence, max_detections)
        case Layout.RTDETR:
            found = _find_ranked(head, output, confidence, max_detections)
            found = _from_shares(found, input_size)
        case Layout.RTDETR_SCORES:
            found = _from_shares(_find_scored(output, confidence, max_detections), input_size)
    _check_finite(found.boxes, found.extra)
    if head.task == "segment" and mask_format != "off":
        if prototypes is None:
            raise ValueError("prototypes must be given for masks, got None")
        return _with_masks(
            _in_image(head, found, box), prototypes, box, mask_format, tolerance, on_mask
        )
    return _in_image(head, found, box)[0]


def decode_yolov8(
    output: NDArray[np.float32],
    box: Letterbox,
    *,
    confidence: float = 0.25,
    iou: float = 0.7,
    max_detections: int = 300,
) -> Detections:
    """Decode one image's output in the YOLOv8 layout, with non-maximum suppression per class.

    The rules are those of ultralytics' ``non_max_suppression`` with its defaults: the best class
    of each anchor, greedy by confidence, boxes of different classes never suppress each other.

    Args:
        output: ``[4 + classes, anchors]``, boxes in input pixels, scores in 0..1.
        box: position of the image in the input.
        confidence: threshold in 0..1; detections must be above it.
        iou: threshold in 0..1; a box that overlaps a more confident one of its class by more is
            dropped.
        max_detections: at least 1.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, or a score above 1, in a score or in
            the box of a detection.
        ValueError: a parameter out of its range, which it names.
    """
    return decode_output(
        YoloHead(Layout.YOLOV8, len(output) - 4),
        output,
        box,
        (0, 0),
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
    )


def decode_end_to_end(
    output: NDArray[np.float32],
    box: Letterbox,
    *,
    n_classes: int,
    confidence: float = 0.25,
    max_detections: int = 300,
) -> Detections:
    """Decode one image's output in the end-to-end layout; the model does the suppression.

    Args:
        output: ``[detections, 6]``, rows x1, y1, x2, y2 in input pixels, confidence, class.
        box: position of the image in the input.
        n_classes: number of classes of the model.
        confidence: threshold in 0..1; detections must be above it.
        max_detections: at least 1.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, or a score above 1, in a score or in a
            detection, or a class that is not a whole number in 0..n_classes - 1.
        ValueError: a parameter out of its range, which it names.
    """
    return decode_output(
        YoloHead(Layout.END_TO_END, n_classes),
        output,
        box,
        (0, 0),
        confidence=confidence,
        max_detections=max_detections,
    )


def _find_yolov8(
    head: YoloHead, output: NDArray[np.float32], confidence: float, iou: float, limit: int
) -> _Found:
    scores = output[4 : 4 + head.n_classes]
    best = scores.max(axis=0)
    candidates = _surest(best, confidence)
    class_id = scores[:, candidates].argmax(axis=0)
    boxes, extra = output[:4, candidates].T, output[4 + head.n_classes :, candidates].T
    return _suppress(head, _Found(boxes, best[candidates], class_id, extra), iou, limit)


def _find_yolov5(
    head: YoloHead, output: NDArray[np.float32], confidence: float, iou: float, limit: int
) -> _Found:
    # A product of scores is below both of them; most anchors have no object.
    with_object = _surest(output[:, 4], confidence / ROUNDING)
    rows = output[with_object]
    scores = rows[:, 5 : 5 + head.n_classes] * rows[:, 4:5]
    best = scores.max(axis=1)
    candidates = _surest(best, confidence)
    class_id = scores[candidates].argmax(axis=1)
    rows = rows[candidates]
    found = _Found(rows[:, :4], best[candidates], class_id, rows[:, 5 + head.n_classes :])
    return _suppress(head, found, iou, limit)


def _find_ranked(
    head: YoloHead, output: NDArray[np.float32], confidence: float, limit: int
) -> _Found:
    """Find objects in rows of a box, a confidence and a class."""
    rows = output[_surest(output[:, 4], confidence)[:limit]]
    _check_finite(rows)
    class_id = rows[:, 5].astype(np.int64)
    if ((class_id != rows[:, 5]) | (class_id < 0) | (class_id >= head.n_classes)).any():
        raise _invalid_output(f"has a class that is not a whole number in 0..{head.n_classes - 1}")
    return _Found(rows[:, :4], rows[:, 4], class_id, rows[:, 6:])


def _find_scored(output: NDArray[np.float32], confidence: float, limit: int) -> _Found:
    """Find objects in rows of a box and a score for each class."""
    best = output[:, 4:].max(axis=1)
    rows = _surest(best, confidence)[:limit]
    class_id = output[rows, 4:].argmax(axis=1)
    return _Found(output[rows, :4], best[rows], class_id, output[rows, :0])


def _surest(scores: NDArray[np.float32], confidence: float) -> NDArray[np.intp]:
    """Return where scores are above a confidence, best first."""
    # Of no score can be said whether it is above the threshold if it is not a number. Boxes that
    # nobody asks for may be anything: half precision overflows in anchors without an object.
    highest = scores.max(initial=0)
    if not np.isfinite(highest):
        raise _invalid_output("contains NaN or infinity in a score")
    if highest > ROUNDING:
        raise _invalid_output(f"has a score of {highest:g}, allowed are 0..1")
    above = np.flatnonzero(scores > confidence)
    order = np.argsort(-scores[above], kind="stable")[:_MAX_CANDIDATES]
    return above[order]


def _suppress(head: YoloHead, found: _Found, iou: float, limit: int) -> _Found:
    """Return the objects that non-maximum suppression keeps; boxes are centres and sizes."""
    _check_finite(found.boxes)
    if head.task == "obb":
        boxes = found.boxes
        rotated = np.concatenate([boxes, found.extra], axis=1)
        _check_finite(rotated)
        kept = suppress_rotated(rotated, found.class_id, iou, limit)
    else:
        boxes = _corners(found.boxes)
        kept = suppress_boxes(boxes, found.class_id, iou, limit)
    return _Found(boxes[kept], found.confidence[kept], found.class_id[kept], found.extra[kept])


def _corners(cxcywh: NDArray[np.float32]) -> NDArray[np.float32]:
    centre, half = cxcywh[:, :2], cxcywh[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _from_shares(found: _Found, input_size: tuple[int, int]) -> _Found:
    """Return objects whose boxes are centres and sizes as shares of the input."""
    height, width = input_size
    pixels = _corners(found.boxes) * np.array([width, height] * 2, dtype=np.float32)
    return _Found(pixels, found.confidence, found.class_id, found.extra)


def _in_image(
    head: YoloHead, found: _Found, box: Letterbox
) -> tuple[Detections, NDArray[np.float32]]:
    """Return detections in pixels of the image, and their columns of the task.

    Boxes in the padding and those with negative sides are left out.
    """
    rotated = None
    if head.task == "obb":
        rotated = regularize(np.concatenate([box.scale_back(found.boxes), found.extra], axis=1))
        original = box.clip(hull(rotated))
    else:
        original = box.to_original(found.boxes)
    valid = (original[:, 2:] > original[:, :2]).all(axis=1)
    extra = found.extra[valid]
    detections = Detections(
        original[valid],
        np.minimum(found.confidence[valid], np.float32(1)),
        found.class_id[valid],
        rotated=None if rotated is None else rotated[valid],
        keypoints=_keypoints(head, extra, box) if head.task == "pose" else None,
    )
    return detections, extra


def _keypoints(head: YoloHead, extra: NDArray[np.float32], box: Letterbox) -> NDArray[np.float32]:
    points = extra.reshape(len(extra), *head.keypoint_shape)
    xy = box.to_original(np.tile(points[..., :2].reshape(-1, 2), 2))[:, :2]
    placed = xy.reshape(*points.shape[:2], 2)
    if points.shape[2] == 2:
        return placed
    return np.concatenate([placed, points[..., 2:].clip(0, 1)], axis=2)


def _with_masks(
    found: tuple[Detections, NDArray[np.float32]],
    prototypes: NDArray[np.float32],
    box: Letterbox,
    mask_format: MaskFormat,
    tolerance: float,
    on_mask: OnMask,
) -> Detections:
    """Return detections with a mask each; a mask may be empty."""
    detections, coefficients = found
    made: list[RleMask | PolygonMask] = []
    for crop in crop_masks(prototypes, coefficients, detections.xyxy, box):
        at = {"left": crop.left, "top": crop.top}
        mask: RleMask | PolygonMask
        if mask_format == "rle":
            mask = encode_rle(crop.pixels, **at, width=box.width, height=box.height)
        else:
            mask = trace_polygons(crop.pixels, **at, tolerance=tolerance)
        made.append(on_mask(mask))
    return replace(detections, masks=tuple(made))


def _check_parameters(confidence: float, iou: float, max_detections: int) -> None:
    for name, value in (("confidence", confidence), ("iou", iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0..1, got {value}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")


def _check_finite(*parts: NDArray[np.float32]) -> None:
    if not all(np.isfinite(part).all() for part in parts):
        raise _invalid_output("contains NaN or infinity in a detection")


def _invalid_output(what: str) -> ModelError:
    return ModelError("MODEL_OUTPUT_INVALID", f"the model's output {what}")
