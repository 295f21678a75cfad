"""ultralytics' own answer, and how far detections of ours are from it."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import ops

from edge.records import Detection, Mask
from vision import RleMask, decode_rle

Bits = NDArray[np.bool_]


def masks_of(results: Any) -> Bits:
    """Return the masks of results in the size of the image."""
    scaled = ops.scale_masks(results.masks.data[None].float(), results.orig_shape)
    masks: Bits = scaled[0].numpy() > 0.5
    return masks


def drawn(mask: Mask, size: tuple[int, int]) -> Bits:
    """Return the pixels of a mask."""
    if mask.rle:
        return decode_rle(RleMask(mask.height, mask.width, mask.rle))
    pixels = np.zeros(size, np.uint8)
    for polygon in mask.polygons:
        points = np.round(np.reshape(polygon, (-1, 1, 2))).astype(np.int32)
        cv2.fillPoly(pixels, [points], 1)
    return pixels > 0


def filled(pixels: Bits) -> Bits:
    """Return a mask without its holes, which polygons cannot hold."""
    contours, _ = cv2.findContours(
        pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    whole = np.zeros(pixels.shape, np.uint8)
    cv2.fillPoly(whole, contours, 1)
    return whole > 0


def differences(ours: Sequence[Detection], results: Any) -> dict[str, float]:
    """Return the largest differences from results with the same objects; IoU is the smallest.

    Objects are compared in pairs of one class, box and confidence.
    """
    if results.probs is not None:
        best = {int(k): float(results.probs.data[k]) for k in results.probs.top5}
        found = {one.class_id: one.confidence for one in ours}
        assert {one.box for one in ours} == {None}
        return {"score": max(abs(best[k] - found.get(k, 0.0)) for k in list(best)[:4])}
    theirs = results.boxes if results.obb is None else results.obb
    assert len(ours) == len(theirs) > 0
    height, width = results.orig_shape
    corners = theirs.xyxy.numpy().clip(0, (width, height, width, height))
    masks = None if results.masks is None else masks_of(results)
    worst: dict[str, list[float]] = {"box px": [], "score": []}
    left = list(ours)
    for row in range(len(theirs)):
        score, class_id = float(theirs.conf[row]), int(theirs.cls[row])
        same = [one for one in left if one.class_id == class_id]
        away = [_away(one, corners[row]) for one in same]
        scores = [abs(one.confidence - score) for one in same]
        at = min(range(len(same)), key=lambda at: away[at] + 1000 * scores[at])
        one = same[at]
        left.remove(one)
        assert one.class_name == results.names[class_id]
        worst["box px"].append(away[at])
        worst["score"].append(scores[at])
        if masks is not None:
            worst.setdefault("mask IoU", []).append(_mask_iou(one.mask, masks[row]))
        if results.keypoints is not None:
            points = np.array([(p.x, p.y, p.confidence) for p in one.keypoints])
            apart = np.abs(points - results.keypoints.data[row].numpy())
            worst.setdefault("points px", []).append(float(apart[:, :2].max()))
            worst.setdefault("visible", []).append(float(apart[:, 2].max()))
        if results.obb is not None:
            turned = one.rotated_box
            assert turned is not None
            expected = ops.regularize_rboxes(results.obb.xywhr)[row].numpy()
            got = [turned.center_x, turned.center_y, turned.width, turned.height]
            worst.setdefault("sides px", []).append(float(np.abs(got - expected[:4]).max()))
            worst.setdefault("angle", []).append(abs(turned.angle - float(expected[4])))
    return {
        name: min(values) if name.endswith("IoU") else max(values) for name, values in worst.items()
    }


def _away(one: Detection, corners: NDArray[np.float32]) -> float:
    box = one.box
    assert box is not None
    ours = (box.x_min, box.y_min, box.x_max, box.y_max)
    return float(np.abs(np.array(ours) - corners).max())


def _mask_iou(mask: Mask | None, expected: Bits) -> float:
    if mask is None:
        return float(not expected.any())
    if not mask.rle:
        expected = filled(expected)
    found = drawn(mask, expected.shape)
    return float((found & expected).sum() / (found | expected).sum())
