"""Non-maximum suppression of axis-aligned boxes and of rotated boxes."""

import numpy as np
from numpy.typing import NDArray

from vision.rotated import probabilistic_iou

_BLOCK = 512  # rotated boxes that are compared with as many others at a time


def suppress_boxes(
    xyxy: NDArray[np.float32], class_id: NDArray[np.int64], iou: float, limit: int
) -> list[int]:
    """Return the rows that greedy suppression within each class keeps, at most `limit`.

    A box is dropped if it overlaps a kept, more confident box of its class by more than `iou`.

    Args:
        xyxy: ``[N, 4]``, most confident first.
        class_id: ``[N]``.
        iou: threshold in 0..1.
        limit: at least 1.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(_separate_classes(xyxy, class_id).T)
    area = (x2 - x1) * (y2 - y1)
    kept: list[int] = []
    remaining = np.arange(len(xyxy))
    while remaining.size and len(kept) < limit:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        across = np.minimum(x2[best], x2[remaining]) - np.maximum(x1[best], x1[remaining])
        down = np.minimum(y2[best], y2[remaining]) - np.maximum(y1[best], y1[remaining])
        shared = across.clip(0) * down.clip(0)
        remaining = remaining[shared <= iou * (area[best] + area[remaining] - shared)]
    return kept


def suppress_rotated(
    boxes: NDArray[np.float32], class_id: NDArray[np.int64], iou: float, limit: int
) -> list[int]:
    """Return the rows of rotated boxes that suppression within each class keeps.

    The rule is ultralytics' for rotated boxes: a box is dropped if it overlaps any more confident
    box of its class by more than `iou`, even one that is dropped itself (Fast NMS: Bolya et al.,
    YOLACT, 2019). The overlap is the probabilistic one; see `probabilistic_iou`.

    Args:
        boxes: ``[N, 5]``, centre, size and angle, most confident first.
        class_id: ``[N]``.
        iou: threshold in 0..1.
        limit: at least 1.
    """
    kept: list[int] = []
    ranks = np.arange(len(boxes))
    for start in range(0, len(boxes), _BLOCK):
        left = ranks[start : start + _BLOCK]
        for at in range(0, start + _BLOCK, _BLOCK):  # boxes that are dropped early cost no more
            surer = ranks[at : at + _BLOCK, None]
            overlap = probabilistic_iou(boxes[at : at + _BLOCK], boxes[left]) > iou
            overlap &= (surer < left) & (class_id[surer] == class_id[left])
            left = left[~overlap.any(axis=0)]
        kept += left.tolist()
        if len(kept) >= limit:
            break
    return kept[:limit]


def _separate_classes(
    xyxy: NDArray[np.float32], class_id: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Shift the boxes of each class apart, so that one pass suppresses within classes only.

    In double precision: with float32 the offset of 80 classes would cost a tenth of a pixel.
    """
    extent = float(np.ptp(xyxy)) + 1 if len(xyxy) else 0.0
    moved: NDArray[np.float64] = xyxy + class_id[:, None] * extent
    return moved
