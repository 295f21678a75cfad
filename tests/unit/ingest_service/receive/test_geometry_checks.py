"""The rules for rotated boxes, keypoints and masks; each is broken by one field."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sightline.types.v1.prediction_pb2 import Detection, Keypoint, Mask, Polygon, RotatedBox

from ingest_service.receive.capture_window import by_server
from ingest_service.receive.checks import find_violations
from ingest_service.receive.decode import Decoder
from tests.unit.ingest_service.samples import NOW, detection, prediction, request, shapes

QUARTER = math.pi / 4
LARGEST = float(np.finfo(np.float32).max)
TRIANGLE = (0.0, 0.0, 4.0, 0.0, 4.0, 3.0)


def rotated(*values: float) -> dict[str, Any]:
    names = ("center_x", "center_y", "width", "height", "angle")
    return {"rotated_box": RotatedBox(**dict(zip(names, values, strict=True)))}


def points(*values: Keypoint) -> dict[str, Any]:
    return {"keypoints": values}


def polygons(*outlines: Sequence[float], **fields: Any) -> dict[str, Any]:
    return {"mask": Mask(polygons=[Polygon(points=outline) for outline in outlines], **fields)}


def rle(text: str, width: int, height: int) -> dict[str, Any]:
    return {"mask": Mask(rle=text, width=width, height=height)}


def zeros(count: int) -> str:
    """Return so many runs, of which the last has 12 pixels and the others none."""
    return "0" * (count - 1) + "<"


GOOD: list[dict[str, Any]] = [
    rotated(0, 0, 0, 0, 0),
    rotated(-LARGEST, LARGEST, LARGEST, LARGEST, 3 * QUARTER),
    rotated(0, 0, 0, 0, -QUARTER),
    rotated(0, 0, 0, 0, float(np.nextafter(np.float32(3 * QUARTER), np.float32(9)))),
    points(Keypoint(x=-LARGEST, y=LARGEST), Keypoint(confidence=0), Keypoint(confidence=1)),
    points(*[Keypoint(x=1, y=2, confidence=0.5)] * 1000),
    polygons(TRIANGLE),
    polygons(*[TRIANGLE] * 100),
    polygons([1.0] * 16_384),
    polygons([-LARGEST, LARGEST] * 3),
    rle("543", 4, 3),
    rle("<", 4, 3),
    rle("0<", 12, 1),
    rle(zeros(65_536), 1, 12),
    {**rotated(1, 1, 1, 1, 1), **points(Keypoint()), **polygons(TRIANGLE)},
]

BAD: list[tuple[dict[str, Any], str, str]] = [
    *(
        (rotated(*[*[1.0] * at, value, *[1.0] * (4 - at)]), field, "ROTATED_BOX_NOT_FINITE")
        for at, field in enumerate(
            ("center_x", "center_y", "width", "height", "angle"),
        )
        for value in (math.nan, -math.inf)
    ),
    (rotated(0, 0, -1e-9, 0, 0), "width", "ROTATED_BOX_NEGATIVE"),
    (rotated(0, 0, 0, -1, 0), "height", "ROTATED_BOX_NEGATIVE"),
    (rotated(0, 0, 0, 0, 3 * QUARTER + 1e-5), "angle", "ROTATED_BOX_ANGLE_OUT_OF_RANGE"),
    (rotated(0, 0, 0, 0, -QUARTER - 1e-5), "angle", "ROTATED_BOX_ANGLE_OUT_OF_RANGE"),
    (points(*[Keypoint()] * 1001), "keypoints", "TOO_MANY_KEYPOINTS"),
    (points(Keypoint(), Keypoint(x=math.inf)), "keypoints[1].x", "KEYPOINT_NOT_FINITE"),
    (points(Keypoint(y=math.nan)), "keypoints[0].y", "KEYPOINT_NOT_FINITE"),
    *(
        (
            points(Keypoint(), Keypoint(confidence=value)),
            "keypoints[1].confidence",
            "KEYPOINT_CONFIDENCE_OUT_OF_RANGE",
        )
        for value in (-1e-9, 1.0000002, math.nan, math.inf)
    ),
    ({"mask": Mask()}, "mask", "MASK_EMPTY"),
    ({"mask": Mask(width=4, height=3)}, "mask", "MASK_EMPTY"),
    (
        {"mask": Mask(rle="<", width=4, height=3, polygons=[Polygon(points=TRIANGLE)])},
        "mask",
        "MASK_AMBIGUOUS",
    ),
    (polygons(TRIANGLE, width=4), "mask.width", "MASK_WIDTH_OUT_OF_RANGE"),
    (polygons(TRIANGLE, height=3), "mask.height", "MASK_HEIGHT_OUT_OF_RANGE"),
    *(
        (rle("<", side, 3), "mask.width", "MASK_WIDTH_OUT_OF_RANGE")
        for side in (0, -1, 65_536, -(2**31))
    ),
    (rle("<", 4, 65_536), "mask.height", "MASK_HEIGHT_OUT_OF_RANGE"),
    (rle(zeros(65_537), 1, 12), "mask.rle", "MASK_RLE_TOO_LONG"),
    *((rle(text, 4, 3), "mask.rle", "MASK_RLE_MALFORMED") for text in ("/", "p", "é", "<P", "\0")),
    (rle("O<", 4, 3), "mask.rle", "MASK_RLE_MALFORMED"),  # -1, 12
    (rle("<", 4, 4), "mask.rle", "MASK_RLE_WRONG_SUM"),
    (rle("543", 3, 3), "mask.rle", "MASK_RLE_WRONG_SUM"),
    (polygons(*[TRIANGLE] * 101), "mask.polygons", "TOO_MANY_POLYGONS"),
    (polygons(TRIANGLE, [1.0] * 16_380), "mask.polygons", "TOO_MANY_POINTS"),
    (polygons(TRIANGLE, (*TRIANGLE, 1)), "mask.polygons[1].points", "POLYGON_POINTS_UNPAIRED"),
    (polygons(TRIANGLE[:4]), "mask.polygons[0].points", "POLYGON_TOO_FEW_POINTS"),
    (polygons(TRIANGLE, ()), "mask.polygons[1].points", "POLYGON_TOO_FEW_POINTS"),
    (
        polygons(TRIANGLE, (*TRIANGLE, 1, math.nan)),
        "mask.polygons[1].points[7]",
        "POLYGON_NOT_FINITE",
    ),
]


def violations(decoder: Decoder, *rows: Sequence[Detection]) -> dict[int, tuple[str, str]]:
    """Return what is broken in predictions of these detections."""
    sent = request(*(prediction(at + 1, detections=row) for at, row in enumerate(rows)))
    batch = decoder.decode([sent.SerializeToString()]).batch
    broken = find_violations(batch.column("predictions").values, by_server(NOW))
    return {row: (violation.field, violation.reason) for row, violation in broken.items()}


@pytest.mark.parametrize("fields", GOOD)
def test_shapes_that_keep_the_rules_pass(decoder: Decoder, fields: dict[str, Any]) -> None:
    assert violations(decoder, [detection(**fields), *shapes()]) == {}


@pytest.mark.parametrize(("fields", "path", "reason"), BAD)
def test_a_shape_that_breaks_a_rule_is_found_among_others(
    decoder: Decoder, fields: dict[str, Any], path: str, reason: str
) -> None:
    good = [detection(), *shapes()]
    broken = violations(decoder, good, [*good, detection(**fields)], [], good)
    prefix = "rotated_box." if "rotated_box" in fields else ""
    assert broken == {1: (f"detections[5].{prefix}{path}", reason)}


def test_the_first_broken_shape_of_each_prediction_is_named(decoder: Decoder) -> None:
    bad = detection(**points(Keypoint(), Keypoint(x=math.nan), Keypoint(x=math.nan)))
    assert violations(decoder, [bad], shapes(), [detection(), bad, bad]) == {
        0: ("detections[0].keypoints[1].x", "KEYPOINT_NOT_FINITE"),
        2: ("detections[1].keypoints[1].x", "KEYPOINT_NOT_FINITE"),
    }
