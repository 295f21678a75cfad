"""Average precision of detections by the PASCAL VOC rules from 2010 on.

Everingham, Van Gool, Williams, Winn and Zisserman, "The PASCAL Visual Object Classes (VOC)
Challenge", IJCV 2010, and its development kit of that year: detections are sorted by falling
confidence, each may claim the box it overlaps most unless that one is taken, and precision is made
to fall monotonically before the area under it is summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scene:
    """Ground truth and detections of one image, of any class.

    Attributes:
        true_boxes: float ``[N, 4]``, x_min, y_min, x_max, y_max in pixels.
        true_classes: int ``[N]``, class ids.
        boxes: float ``[M, 4]``, as above.
        classes: int ``[M]``.
        confidences: float ``[M]`` in 0..1.
    """

    true_boxes: NDArray[np.floating]
    true_classes: NDArray[np.integer]
    boxes: NDArray[np.floating]
    classes: NDArray[np.integer]
    confidences: NDArray[np.floating]


def average_precision(scenes: Sequence[Scene], class_id: int, iou: float = 0.5) -> float:
    """Return the average precision of one class.

    Args:
        scenes: all images, including those without that class.
        class_id: id of the class to measure.
        iou: minimum overlap of a detection and the box that it matches, in 0..1.

    Returns:
        A number in 0..1; NaN if no scene holds that class.
    """
    total = sum(int((scene.true_classes == class_id).sum()) for scene in scenes)
    if total == 0:
        return float("nan")
    confidences, hits = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for scene in scenes:
        mine = scene.classes == class_id
        order = np.argsort(-scene.confidences[mine], kind="stable")
        confidences.append(scene.confidences[mine][order])
        truth = scene.true_boxes[scene.true_classes == class_id]
        hits.append(_matches(scene.boxes[mine][order], truth, iou))
    ranking = np.argsort(-np.concatenate(confidences), kind="stable")
    return _area_under_precision(np.concatenate(hits)[ranking], total)


def iou_matrix(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the intersection over union of boxes ``[N, 4]`` with boxes ``[M, 4]``: ``[N, M]``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2, dtype=np.float64)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1, dtype=np.float64) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    overlap = np.zeros_like(shared, dtype=np.float64)
    np.divide(shared, union, out=overlap, where=union > 0)
    return overlap


def _matches(
    boxes: NDArray[np.floating], truth: NDArray[np.floating], iou: float
) -> NDArray[np.bool_]:
    """Return which detections, by falling confidence, match a box that no earlier one matched."""
    hits = np.zeros(len(boxes), dtype=bool)
    if len(truth) == 0:
        return hits
    matched: set[int] = set()
    for row, overlaps in enumerate(iou_matrix(boxes, truth)):
        best = int(overlaps.argmax())
        hits[row] = overlaps[best] >= iou and best not in matched
        if hits[row]:
            matched.add(best)
    return hits


def _area_under_precision(hits: NDArray[np.bool_], total: int) -> float:
    """Return the area under precision over recall; precision is the best at a recall or beyond."""
    correct = np.cumsum(hits)
    precision = correct / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / total)
