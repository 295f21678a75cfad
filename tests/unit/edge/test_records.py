import math
from typing import Any

import pytest

from edge.records import (
    MAX_SIZE,
    Box,
    CloudReason,
    Detection,
    Prediction,
    Source,
)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Box("1", 0, 0, 0), "x_min"),  # type: ignore[arg-type]
        (lambda: Box(0.0, 0.0, 10**400, 0.0), "x_max"),
        (lambda: Detection(2**31, "", 0.5), "class_id"),
        (lambda: Detection(1.5, "", 0.5), "class_id"),  # type: ignore[arg-type]
        (lambda: Detection(0, b"car", 0.5), "class_name"),  # type: ignore[arg-type]
        (lambda: Detection(0, "\ud800", 0.5), "class_name"),
        (lambda: Detection(0, "", None), "confidence"),  # type: ignore[arg-type]
        (lambda: Detection(0, "", 0.5, (1, 2, 3, 4)), "box"),  # type: ignore[arg-type]
        (lambda: Detection(0, "", 0.5, track_id=2**63), "track_id"),
        (lambda: Prediction(None, "m"), "image_id"),  # type: ignore[arg-type]
        (lambda: Prediction("i", 7), "model_name"),  # type: ignore[arg-type]
        (lambda: Prediction("i", "m", image_height=-(2**31) - 1), "image_height"),
        (lambda: Prediction("i", "m", source="edge"), "source"),  # type: ignore[arg-type]
        (lambda: Prediction("i", "m", cloud_reason="why"), "cloud_reason"),  # type: ignore[arg-type]
        (lambda: Prediction("i", "m", captured_at=math.nan), "captured_at"),
        (lambda: Prediction("i", "m", captured_at=1e12), "captured_at"),
        (lambda: Prediction("i", "m", inference_seconds=math.inf), "inference_seconds"),
        (lambda: Prediction("i", "m", detections=("cat",)), r"detections\[0\]"),  # type: ignore[arg-type]
        (lambda: Prediction("i", "m", labels={"line": 3}), r"labels\[line\]"),  # type: ignore[dict-item]
        (lambda: Prediction("i", "m", labels={3: "line"}), "labels"),  # type: ignore[dict-item]
        (lambda: Prediction("i" * 2_000_000, "m"), "size"),
    ],
)
def test_what_cannot_be_written_down_is_refused_with_its_name(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=rf"^(prediction must have a )?{field} .*\(got "):
        make()


def test_what_the_server_will_reject_is_accepted() -> None:
    box = Box(math.nan, math.inf, -5.0, 1e300)
    prediction = Prediction(
        "",
        "",
        image_width=-1,
        inference_seconds=-1.0,
        detections=(Detection(-1, "x" * 300, math.nan, box),),
        trace_id="no trace id",
    )
    assert prediction.detections[0].box is box


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    numpy = pytest.importorskip("numpy")
    box = Box(numpy.float32(1.5), 2, numpy.int64(3), numpy.float64(4))
    detection = Detection(numpy.int64(3), "car", numpy.float32(0.5), box, numpy.int32(9))
    prediction = Prediction("i", "m", image_width=numpy.int32(8), defect_detected=numpy.bool_(1))

    assert {type(edge) for edge in (box.x_min, box.y_min, box.x_max, box.y_max)} == {float}
    assert box == Box(1.5, 2.0, 3.0, 4.0)
    assert (type(detection.class_id), type(detection.track_id)) == (int, int)
    assert type(detection.confidence) is float
    assert type(prediction.image_width) is int
    assert prediction.defect_detected is True


def test_words_become_choices() -> None:
    prediction = Prediction("i", "m", source="cloud", cloud_reason="requested")  # type: ignore[arg-type]
    assert prediction.source is Source.CLOUD
    assert prediction.cloud_reason is CloudReason.REQUESTED


def test_a_record_does_not_change_with_what_it_was_made_of() -> None:
    labels, detections = {"line": "1"}, [Detection(0, "car", 0.5)]
    prediction = Prediction("i", "m", detections=detections, labels=labels)
    labels["line"] = "2"
    detections.clear()
    assert prediction.labels == {"line": "1"}
    assert len(prediction.detections) == 1


def test_size_counts_every_part() -> None:
    bare = Prediction("i", "m").size
    assert Prediction("ii", "m").size == bare + 4
    assert Prediction("i", "m", detections=(Detection(0, "car", 0.5),)).size == bare + 64 + 12
    assert Prediction("i", "m", labels={"k": "vv"}).size == bare + 16 + 12
    assert Prediction("i", "m", trace_id="t").size == bare + 4
    assert bare < MAX_SIZE
