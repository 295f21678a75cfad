"""Decoding of a YOLO model's output into boxes, for the two layouts that exporters write."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vision.errors import ModelError
from vision.letterbox import Letterbox
from vision.metadata import ModelMetadata

_MAX_CANDIDATES = 30_000  # boxes that enter NMS, best first; ultralytics' max_nms
_ROUNDING = 1.01  # a quantised sigmoid may slightly exceed 1; a logit exceeds it by far


class Layout(StrEnum):
    """The layout of a detector's output."""

    YOLOV8 = "yolov8"
    """``[batch, 4 + classes, anchors]``, boxes as centre and size: YOLOv8, 9, 11, 12; needs NMS."""
    END_TO_END = "end_to_end"
    """``[batch, detections, 6]``, rows x1, y1, x2, y2, confidence, class: YOLOv10, YOLO26, and
    exports with NMS inside."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects detected in one image, most confident first.

    Attributes:
        xyxy: float32 ``[N, 4]``, corners in pixels of the upright image; every box lies inside the
            image and has a positive area.
        confidence: float32 ``[N]``, above the threshold and at most 1.
        class_id: int64 ``[N]``.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.confidence)


def detect_layout(
    output_shape: Sequence[int], n_classes: int, metadata: ModelMetadata | None = None
) -> Layout:
    """Return the layout of an output of ``[batch, rows, columns]``.

    Six columns mean end to end: no grid has so few anchors. Metadata can only refuse a model: one
    that declares itself end to end and is not, and RT-DETR, whose six columns have another meaning.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``: the output is neither layout.
    """
    metadata = metadata or ModelMetadata()
    if metadata.head == "RTDETRDecoder":
        raise ModelError("MODEL_UNSUPPORTED", "key 'head': RT-DETR's output is not supported")
    if len(output_shape) == 3 and output_shape[2] == 6:
        return Layout.END_TO_END
    if len(output_shape) == 3 and output_shape[1] == 4 + n_classes and not metadata.end_to_end:
        return Layout.YOLOV8
    declared = ", and its metadata declares end to end" if metadata.end_to_end else ""
    raise ModelError(
        "MODEL_UNSUPPORTED",
        f"the output is {list(output_shape)}{declared}: neither [batch, {4 + n_classes}, anchors] "
        f"(4 + {n_classes} classes) nor [batch, detections, 6]",
    )


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
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, or a score above 1.
        ValueError: a parameter out of its range, which it names.
    """
    _check_parameters(confidence, iou, max_detections)
    _check_finite(output)
    best = output[4:].max(axis=0)
    _check_scores(best)
    candidates = np.flatnonzero(best > confidence)
    order = np.argsort(-best[candidates], kind="stable")[:_MAX_CANDIDATES]
    candidates = candidates[order]
    class_id = output[4:, candidates].argmax(axis=0)
    xyxy = _corners(output[:4, candidates].T)
    kept = _suppress(_separate_classes(xyxy, class_id), iou, max_detections)
    return _in_image(box, xyxy[kept], best[candidates][kept], class_id[kept])


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
        ModelError: ``MODEL_OUTPUT_INVALID``: NaN, infinity, a score above 1, or a class that is not
            a whole number in 0..n_classes - 1.
        ValueError: a parameter out of its range, which it names.
    """
    _check_parameters(confidence, 0, max_detections)
    _check_finite(output)
    _check_scores(output[:, 4])
    rows = output[output[:, 4] > confidence]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")[:max_detections]]
    class_id = rows[:, 5].astype(np.int64)
    if ((class_id != rows[:, 5]) | (class_id < 0) | (class_id >= n_classes)).any():
        raise _invalid_output(f"has a class that is not a whole number in 0..{n_classes - 1}")
    return _in_image(box, rows[:, :4], rows[:, 4], class_id)


def _check_parameters(confidence: float, iou: float, max_detections: int) -> None:
    for name, value in (("confidence", confidence), ("iou", iou)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0..1, got {value}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")


def _check_finite(output: NDArray[np.float32]) -> None:
    if not np.isfinite(output).all():
        raise _invalid_output("contains NaN or infinity")


def _check_scores(scores: NDArray[np.float32]) -> None:
    highest = scores.max(initial=0)
    if highest > _ROUNDING:
        raise _invalid_output(f"has a score of {highest:g}, allowed are 0..1")


def _invalid_output(what: str) -> ModelError:
    return ModelError("MODEL_OUTPUT_INVALID", f"the model's output {what}")


def _corners(cxcywh: NDArray[np.float32]) -> NDArray[np.float32]:
    centre, half = cxcywh[:, :2], cxcywh[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _separate_classes(
    xyxy: NDArray[np.float32], class_id: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Shift the boxes of each class apart, so that one pass suppresses within classes only.

    In double precision: with float32 the offset of 80 classes would cost a tenth of a pixel.
    """
    extent = float(np.ptp(xyxy)) + 1 if len(xyxy) else 0.0
    moved: NDArray[np.float64] = xyxy + class_id[:, None] * extent
    return moved


def _suppress(boxes: NDArray[np.float64], iou: float, limit: int) -> list[int]:
    """Return the rows that greedy non-maximum suppression keeps of ``[N, 4]``, best first."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    area = (x2 - x1) * (y2 - y1)
    kept: list[int] = []
    remaining = np.arange(len(boxes))
    while remaining.size and len(kept) < limit:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        across = np.minimum(x2[best], x2[remaining]) - np.maximum(x1[best], x1[remaining])
        down = np.minimum(y2[best], y2[remaining]) - np.maximum(y1[best], y1[remaining])
        shared = across.clip(0) * down.clip(0)
        remaining = remaining[shared <= iou * (area[best] + area[remaining] - shared)]
    return kept


def _in_image(
    box: Letterbox,
    xyxy: NDArray[np.float32],
    confidence: NDArray[np.float32],
    class_id: NDArray[np.int64],
) -> Detections:
    """Return detections in image pixels, without boxes in the padding or with negative sides."""
    original = box.to_original(xyxy)
    valid = (original[:, 2:] > original[:, :2]).all(axis=1)
    return Detections(
        original[valid], np.minimum(confidence[valid], np.float32(1)), class_id[valid]
    )
