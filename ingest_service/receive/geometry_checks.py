"""Checks of the rules for rotated boxes, keypoints and masks, over columns.

Pure. The rules and their bounds are those of `proto/sightline/types/v1/prediction.proto`. Columns
without values are skipped.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from ingest_service.receive.rules import (
    BoolArray,
    Broken,
    ListLevel,
    NumberArray,
    absent,
    numbers,
    sizes,
)
from ingest_service.receive.run_lengths import find_broken_runs
from servicekit.contract_bounds import (
    MAX_IMAGE_SIDE,
    MAX_KEYPOINTS,
    MAX_MASK_POINTS,
    MAX_POLYGONS,
    MAX_RLE_BYTES,
    MIN_POLYGON_POINTS,
)

ANGLE_TOLERANCE = 1e-6
"""Distance from the range of angles that is accepted: a few steps of a 32-bit float, radians."""
_MIN_ANGLE, _MAX_ANGLE = -math.pi / 4 - ANGLE_TOLERANCE, 3 * math.pi / 4 + ANGLE_TOLERANCE
_Rules = Iterator[tuple[Broken, Sequence[ListLevel]]]


def geometry_rules(detections: pa.StructArray) -> _Rules:
    """Yield the rules, each with the levels below the detections to which it belongs."""
    for rule in _rotated_box_rules(detections.field("rotated_box")):
        yield rule, ()
    yield from _keypoint_rules(detections.field("keypoints"))
    masks = detections.field("mask")
    if masks.null_count < len(masks):
        for rule in _mask_rules(masks):
            yield rule, ()
        yield from _polygon_rules(masks.field("polygons"))
        for rule in _run_length_rules(masks):
            yield rule, ()


def _rotated_box_rules(boxes: pa.StructArray) -> Iterator[Broken]:
    if boxes.null_count == len(boxes):
        return
    present = ~absent(boxes)
    for name in ("center_x", "center_y", "width", "height", "angle"):
        infinite = present & ~np.isfinite(numbers(boxes, name))
        yield Broken(f"rotated_box.{name}", "ROTATED_BOX_NOT_FINITE", infinite)
    for name in ("width", "height"):
        negative = present & (numbers(boxes, name) < 0)
        yield Broken(f"rotated_box.{name}", "ROTATED_BOX_NEGATIVE", negative)
    angle = numbers(boxes, "angle").astype(np.float64)
    turned = present & ((angle < _MIN_ANGLE) | (angle > _MAX_ANGLE))
    yield Broken("rotated_box.angle", "ROTATED_BOX_ANGLE_OUT_OF_RANGE", turned)


def _keypoint_rules(keypoints: pa.ListArray) -> _Rules:
    points = keypoints.values
    if not len(points):
        return
    offsets = keypoints.offsets.to_numpy()
    yield Broken("keypoints", "TOO_MANY_KEYPOINTS", np.diff(offsets) > MAX_KEYPOINTS), ()
    levels = (ListLevel("keypoints", offsets),)
    for name in ("x", "y"):
        yield Broken(name, "KEYPOINT_NOT_FINITE", ~np.isfinite(numbers(points, name))), levels
    confidence = numbers(points, "confidence")
    # Not written as "< 0 or > 1": NaN must not pass.
    ok = (confidence >= 0) & (confidence <= 1) | absent(points.field("confidence"))
    yield Broken("confidence", "KEYPOINT_CONFIDENCE_OUT_OF_RANGE", ~ok), levels


def _mask_rules(masks: pa.StructArray) -> Iterator[Broken]:
    present = ~absent(masks)
    rle_bytes, polygons = sizes(masks.field("rle")), _counts(masks.field("polygons"))
    has_rle, has_polygons = rle_bytes > 0, polygons > 0
    yield Broken("mask", "MASK_EMPTY", present & ~has_rle & ~has_polygons)
    yield Broken("mask", "MASK_AMBIGUOUS", present & has_rle & has_polygons)
    yield Broken("mask.rle", "MASK_RLE_TOO_LONG", rle_bytes > MAX_RLE_BYTES)
    for name in ("width", "height"):
        side = numbers(masks, name)
        wrong = np.where(has_rle, (side < 1) | (side > MAX_IMAGE_SIDE), side != 0)
        yield Broken(f"mask.{name}", f"MASK_{name.upper()}_OUT_OF_RANGE", present & wrong)
    yield Broken("mask.polygons", "TOO_MANY_POLYGONS", polygons > MAX_POLYGONS)


def _polygon_rules(polygons: pa.ListArray) -> _Rules:
    if not len(polygons.values):
        return
    points = polygons.values.field("points")
    offsets, ends = polygons.offsets.to_numpy(), points.offsets.to_numpy()
    many = np.diff(ends[offsets]) > 2 * MAX_MASK_POINTS
    yield Broken("mask.polygons", "TOO_MANY_POINTS", many), ()
    within = ListLevel("mask.polygons", offsets)
    counts = np.diff(ends)
    yield Broken("points", "POLYGON_POINTS_UNPAIRED", counts % 2 > 0), (within,)
    yield Broken("points", "POLYGON_TOO_FEW_POINTS", counts < 2 * MIN_POLYGON_POINTS), (within,)
    infinite = ~np.isfinite(points.values.to_numpy(zero_copy_only=False))
    yield Broken("", "POLYGON_NOT_FINITE", infinite), (within, ListLevel("points", ends))


def _run_length_rules(masks: pa.StructArray) -> Iterator[Broken]:
    texts = masks.field("rle")
    rle_bytes = sizes(texts)
    width, height = (numbers(masks, name).astype(np.int64) for name in ("width", "height"))
    checked = (rle_bytes > 0) & (rle_bytes <= MAX_RLE_BYTES) & _is_side(width) & _is_side(height)
    if not checked.any():
        return
    broken = find_broken_runs(texts, width * height, checked)
    yield Broken("mask.rle", "MASK_RLE_MALFORMED", broken.malformed)
    yield Broken("mask.rle", "MASK_RLE_WRONG_SUM", broken.wrong_sum)


def _counts(lists: pa.ListArray) -> NumberArray:
    return np.diff(lists.offsets.to_numpy())


def _is_side(values: NumberArray) -> BoolArray:
    return (values >= 1) & (values <= MAX_IMAGE_SIDE)
