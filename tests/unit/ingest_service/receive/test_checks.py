import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.types.v1.prediction_pb2 import (
    BoundingBox,
    CloudReason,
    Detection,
    Prediction,
    PredictionSource,
)

from ingest_service.receive.capture_window import by_server
from ingest_service.receive.checks import CLOUD_REASONS, SOURCES, find_violations
from ingest_service.receive.decode import Decoder
from tests.unit.ingest_service.samples import NOW, detection, prediction, request, timestamp

MICROSECOND = timedelta(microseconds=1)
JUST_BELOW_0 = float(np.nextafter(np.float32(0), np.float32(-1)))
JUST_ABOVE_1 = float(np.nextafter(np.float32(1), np.float32(2)))
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def violations(decoder: Decoder, *predictions: Prediction) -> dict[int, tuple[str, str]]:
    batch = decoder.decode([request(*predictions).SerializeToString()]).batch
    broken = find_violations(batch.column("predictions").values, by_server(NOW))
    return {row: (violation.field, violation.reason) for row, violation in broken.items()}


def of_detection(**fields: Any) -> dict[str, Any]:
    return {"detections": [detection(), detection(**fields)]}


def of_box(*edges: float) -> dict[str, Any]:
    names = ("x_min", "y_min", "x_max", "y_max")
    return of_detection(box=BoundingBox(**dict(zip(names, edges, strict=True))))


def captured(time: datetime) -> dict[str, Any]:
    return {"captured_at": timestamp(time)}


def labels(count: int) -> dict[str, Any]:
    return {"labels": {f"key-{index}": "" for index in range(count)}}


GOOD: list[dict[str, Any]] = [
    {},
    {"image_id": "i"},
    {"image_id": "i" * 512},
    {"image_width": 0, "image_height": 0},
    {"image_width": 65535, "image_height": 65535},
    {"model_name": "m" * 256, "model_version": "v" * 256},
    {"model_version": ""},
    *({"source": number} for number in PredictionSource.values() if number),
    *({"cloud_reason": number} for number in CloudReason.values()),
    captured(datetime(2000, 1, 1, tzinfo=UTC)),
    captured(NOW + timedelta(days=1)),
    {"inference_time": Duration()},
    {"inference_time": Duration(seconds=315_576_000_000)},
    {"detections": []},
    {"detections": [Detection(confidence=1)] * 10_000},
    of_detection(class_id=0, class_name=""),
    of_detection(class_id=2**31 - 1, class_name="c" * 256),
    of_detection(confidence=0.0),
    of_detection(confidence=-0.0),
    of_detection(confidence=1.0),
    of_detection(box=None),
    of_box(0, 0, 0, 0),
    of_box(-0.0, -0.0, -0.0, -0.0),
    of_box(5, 6, 5, 6),
    of_box(0, 0, LARGEST_FLOAT, LARGEST_FLOAT),
    of_detection(track_id=-(2**63)),
    {"defect_detected": False},
    labels(64),
    {"labels": {"k" * 1024: "v" * 1024, "": ""}},
    {"trace_id": "0123456789abcdef" * 2},
]

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"image_id": ""}, "image_id", "IMAGE_ID_REQUIRED"),
    ({"image_id": "i" * 513}, "image_id", "IMAGE_ID_TOO_LONG"),
    ({"image_id": "é" * 257}, "image_id", "IMAGE_ID_TOO_LONG"),
    ({"image_width": -1}, "image_width", "IMAGE_WIDTH_OUT_OF_RANGE"),
    ({"image_width": 65536}, "image_width", "IMAGE_WIDTH_OUT_OF_RANGE"),
    ({"image_height": -1}, "image_height", "IMAGE_HEIGHT_OUT_OF_RANGE"),
    ({"image_height": 65536}, "image_height", "IMAGE_HEIGHT_OUT_OF_RANGE"),
    ({"model_name": ""}, "model_name", "MODEL_NAME_REQUIRED"),
    ({"model_name": "m" * 257}, "model_name", "MODEL_NAME_TOO_LONG"),
    ({"model_version": "v" * 257}, "model_version", "MODEL_VERSION_TOO_LONG"),
    ({"source": 0}, "source", "SOURCE_REQUIRED"),
    ({"source": 3}, "source", "SOURCE_UNKNOWN"),
    ({"source": -1}, "source", "SOURCE_UNKNOWN"),
    ({"cloud_reason": 7}, "cloud_reason", "CLOUD_REASON_UNKNOWN"),
    ({"cloud_reason": -1}, "cloud_reason", "CLOUD_REASON_UNKNOWN"),
    ({"captured_at": None}, "captured_at", "CAPTURED_AT_REQUIRED"),
    ({"captured_at": Timestamp()}, "captured_at", "CAPTURED_AT_TOO_EARLY"),
    (
        captured(datetime(2000, 1, 1, tzinfo=UTC) - MICROSECOND),
        "captured_at",
        "CAPTURED_AT_TOO_EARLY",
    ),
    ({"captured_at": Timestamp(seconds=-(2**63))}, "captured_at", "CAPTURED_AT_TOO_EARLY"),
    (
        captured(NOW + timedelta(days=1) + MICROSECOND),
        "captured_at",
        "CAPTURED_AT_IN_FUTURE",
    ),
    ({"captured_at": Timestamp(seconds=2**63 - 1)}, "captured_at", "CAPTURED_AT_IN_FUTURE"),
    ({"inference_time": Duration(nanos=-1)}, "inference_time", "INFERENCE_TIME_NEGATIVE"),
    ({"inference_time": Duration(seconds=-(2**63))}, "inference_time", "INFERENCE_TIME_NEGATIVE"),
    ({"detections": [Detection(confidence=1)] * 10_001}, "detections", "TOO_MANY_DETECTIONS"),
    (of_detection(class_id=-1), "detections[1].class_id", "CLASS_ID_NEGATIVE"),
    (of_detection(class_name="c" * 257), "detections[1].class_name", "CLASS_NAME_TOO_LONG"),
    *(
        (of_detection(confidence=value), "detections[1].confidence", "CONFIDENCE_OUT_OF_RANGE")
        for value in (JUST_BELOW_0, JUST_ABOVE_1, math.nan, math.inf, -math.inf)
    ),
    (of_box(math.nan, 0, 1, 1), "detections[1].box.x_min", "BOX_NOT_FINITE"),
    (of_box(0, math.nan, 1, 1), "detections[1].box.y_min", "BOX_NOT_FINITE"),
    (of_box(0, 0, math.inf, 1), "detections[1].box.x_max", "BOX_NOT_FINITE"),
    (of_box(0, 0, 1, -math.inf), "detections[1].box.y_max", "BOX_NOT_FINITE"),
    (of_box(JUST_BELOW_0, 0, 1, 1), "detections[1].box.x_min", "BOX_NEGATIVE"),
    (of_box(0, JUST_BELOW_0, 1, 1), "detections[1].box.y_min", "BOX_NEGATIVE"),
    (of_box(JUST_ABOVE_1, 0, 1, 1), "detections[1].box.x_max", "BOX_INSIDE_OUT"),
    (of_box(0, JUST_ABOVE_1, 1, 1), "detections[1].box.y_max", "BOX_INSIDE_OUT"),
    (labels(65), "labels", "TOO_MANY_LABELS"),
    ({"labels": {"k" * 1025: ""}}, "labels", "LABEL_KEY_TOO_LONG"),
    ({"labels": {"": "v" * 1025}}, "labels", "LABEL_VALUE_TOO_LONG"),
    *(
        ({"trace_id": text}, "trace_id", "TRACE_ID_MALFORMED")
        for text in ("0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", "-" * 32)
    ),
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_keeps_the_rules_passes(decoder: Decoder, fields: dict[str, Any]) -> None:
    assert violations(decoder, prediction(**fields)) == {}


@pytest.mark.parametrize(("fields", "path", "reason"), BAD)
def test_what_breaks_a_rule_is_found_by_field_and_reason(
    decoder: Decoder, fields: dict[str, Any], path: str, reason: str
) -> None:
    good = prediction(**labels(3), detections=[detection()] * 2)
    broken = violations(decoder, good, prediction(**fields), good)
    assert broken == {1: (path, reason)}


def test_the_first_broken_detection_of_each_prediction_is_named(decoder: Decoder) -> None:
    bad = detection(confidence=2)
    broken = violations(
        decoder,
        prediction(detections=[]),
        prediction(detections=[detection(), bad, bad]),
        prediction(detections=[bad]),
    )
    assert broken == {
        1: ("detections[1].confidence", "CONFIDENCE_OUT_OF_RANGE"),
        2: ("detections[0].confidence", "CONFIDENCE_OUT_OF_RANGE"),
    }


def test_one_reason_is_given_for_a_prediction_that_breaks_several_rules(decoder: Decoder) -> None:
    worst = prediction(image_id="", trace_id="x", detections=[detection(class_id=-1)])
    assert len(violations(decoder, worst)) == 1


def test_nothing_breaks_no_rule(decoder: Decoder) -> None:
    assert violations(decoder) == {}


@pytest.mark.parametrize(
    ("names", "enum", "prefix"),
    [
        (SOURCES, PredictionSource, "PREDICTION_SOURCE_"),
        (CLOUD_REASONS, CloudReason, "CLOUD_REASON_"),
    ],
)
def test_every_enum_value_of_the_contract_has_its_name(
    names: tuple[str | None, ...], enum: Any, prefix: str
) -> None:
    expected = [name.removeprefix(prefix).lower() for name in enum.keys()]  # noqa: SIM118
    assert enum.values() == list(range(len(names)))
    assert list(names) == [None, *expected[1:]]
