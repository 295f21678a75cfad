"""Detections as columns, from every library whose arrays people have."""

import math
from array import array
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge.detections import Box, Detection, DetectionArrays
from edge.log.encode import prediction_body
from edge.records import Prediction

FLOAT = st.floats(allow_nan=False)
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
BOXES = st.builds(Box, FLOAT, FLOAT, FLOAT, FLOAT)
INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Detection, ...]:
    """Detections that are all tracked or all not, as columns have it."""
    track = draw(st.sampled_from([st.none(), INT64]))
    item = st.builds(Detection, INT32, NAME, FLOAT, BOXES, track)
    return tuple(draw(st.lists(item, max_size=6)))


def xyxy(detections: tuple[Detection, ...]) -> list[list[float]]:
    boxes = (detection.box for detection in detections)
    return [[box.x_min, box.y_min, box.x_max, box.y_max] for box in boxes if box is not None]


def columns(detections: tuple[Detection, ...], kind: Callable[[list[Any]], Any]) -> DetectionArrays:
    tracked = bool(detections) and detections[0].track_id is not None
    return DetectionArrays(
        kind(xyxy(detections)),
        kind([item.confidence for item in detections]),
        [item.class_id for item in detections],
        track_id=[item.track_id for item in detections] if tracked else None,
        class_name=[item.class_name for item in detections],
    )


def float32(values: list[Any]) -> Any:
    with numpy.errstate(over="ignore"):
        return numpy.asarray(values, numpy.float32)


def float64(values: list[Any]) -> Any:
    return numpy.asarray(values, numpy.float64)


def tensor64(values: list[Any]) -> Any:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind", [list, float32, float64, tensor64])
@given(detections=rows())
def test_on_the_wire_columns_equal_objects(
    kind: Callable[[list[Any]], Any], detections: tuple[Detection, ...]
) -> None:
    by_object = Prediction("i", "m", detections=detections)
    by_column = Prediction("i", "m", detections=columns(detections, kind))
    assert prediction_body(by_column, 1.0) == prediction_body(by_object, 1.0)
    assert by_column.size == by_object.size


def float16(values: list[Any]) -> Any:
    return numpy.asarray(values, numpy.float16)


def bfloat16(values: list[Any]) -> Any:
    return torch.tensor(values, dtype=torch.bfloat16, requires_grad=True)


def big_endian(values: list[Any]) -> Any:
    return numpy.asarray(values, ">f4")


def every_other(values: list[Any]) -> Any:
    return numpy.repeat(numpy.asarray(values, numpy.float32), 2, axis=0)[::2]


def tuples(values: list[Any]) -> Any:
    return tuple(tuple(row) if isinstance(row, list) else row for row in values)


@pytest.mark.parametrize(
    "kind",
    [list, tuples, float16, float32, float64, bfloat16, tensor64, big_endian, every_other],
)
def test_every_kind_of_array(kind: Callable[[list[Any]], Any]) -> None:
    detections = DetectionArrays(
        kind([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.5]]),
        kind([0.5, 0.25]),
        kind([2, 0]),
        track_id=kind([7, 9]),
        names=["cat", "dog", "bus"],
    )
    expected = (
        Detection(2, "bus", 0.5, Box(1.0, 2.0, 3.0, 4.0), 7),
        Detection(0, "cat", 0.25, Box(5.0, 6.0, 7.0, 8.5), 9),
    )
    assert detections == expected
    assert tuple(detections) == expected
    assert (detections[-1], detections[:1], len(detections)) == (expected[1], expected[:1], 2)
    assert Prediction("i", "m", detections=detections) == Prediction("i", "m", detections=expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_every_kind_of_whole_number(dtype: str) -> None:
    ids = numpy.asarray([3, 0], dtype)
    detections = DetectionArrays([[0, 0, 1, 1]] * 2, [1, 0], ids, track_id=ids)
    assert [(item.class_id, item.track_id, item.class_name) for item in detections] == [
        (3, 3, ""),
        (0, 0, ""),
    ]


def test_names_by_mapping_and_by_row() -> None:
    boxes, scores = [[0, 0, 1, 1]] * 2, array("f", [0.5, 0.5])
    by_class = DetectionArrays(
        boxes, scores, array("i", [5, 80]), names={5: "bus", 80: "ünbekannt"}
    )
    by_row = DetectionArrays(boxes, scores, [5, 80], class_name=numpy.array(["bus", "ünbekannt"]))
    assert by_class.class_names == by_row.class_names == ("bus", "ünbekannt")
    assert by_class == by_row
    assert hash(by_class) == hash(by_row) == hash(tuple(by_row))
    assert by_class != "bus"


@pytest.mark.parametrize("nothing", [[], numpy.zeros((0, 4)), numpy.zeros(0), torch.zeros(0, 4)])
def test_nothing_found(nothing: Any) -> None:
    detections = DetectionArrays(nothing, [], numpy.zeros(0), names={})
    assert (len(detections), tuple(detections)) == (0, ())
    prediction = Prediction("i", "m", detections=detections)
    assert prediction_body(prediction, 1.0) == prediction_body(Prediction("i", "m"), 1.0)


@pytest.mark.parametrize("kind", [float32, float64, tensor64])
def test_later_changes_of_the_arrays_do_not_matter(kind: Callable[[list[Any]], Any]) -> None:
    boxes, scores, ids = kind([[1.0, 2, 3, 4]]), kind([0.5]), kind([1])
    names = {1: "cat"}
    detections = DetectionArrays(boxes, scores, ids, track_id=ids, names=names)
    boxes[:], scores[:], ids[:], names[1] = 9, 9, 9, "dog"
    assert tuple(detections) == (Detection(1, "cat", 0.5, Box(1.0, 2.0, 3.0, 4.0), 1),)


BOX, HALF = [[0.0, 0.0, 1.0, 1.0]], [0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xyxy": numpy.zeros(4)}, r"xyxy must have the shape \[n, 4\] \(got \[4\]\)"),
        ({"xyxy": numpy.zeros((1, 5))}, r"xyxy must have the shape \[n, 4\] \(got \[1, 5\]\)"),
        ({"xyxy": torch.zeros(1, 1, 4)}, r"xyxy must have the shape .* \(got \[1, 1, 4\]\)"),
        ({"xyxy": [[0, 0, 1]]}, r"xyxy must have 4 numbers in each row \(got 3\)"),
        ({"xyxy": [0, 0, 1, 1]}, "xyxy must be an array"),
        ({"xyxy": None}, "xyxy must be an array"),
        ({"xyxy": [["a", 0, 1, 1]]}, "xyxy must be numbers"),
        ({"xyxy": numpy.array([[0, math.nan, 1, 1]])}, "xyxy must not contain NaN"),
        ({"xyxy": [[0, math.inf, -math.inf, math.nan]]}, "xyxy must not contain NaN"),
        ({"confidence": numpy.float32(0.5)}, r"confidence must have the shape \[n\] \(got \[\]\)"),
        ({"confidence": numpy.zeros((1, 1))}, r"confidence must have the shape \[n\]"),
        ({"confidence": [math.nan]}, "confidence must not contain NaN"),
        ({"confidence": [0.5, 0.5]}, r"confidence must have one value per box, 1 \(got 2\)"),
        ({"confidence": None}, "confidence must be an array"),
        ({"class_id": [0, 0]}, r"class_id must have one value per box, 1 \(got 2\)"),
        ({"class_id": [0.5]}, r"class_id must be whole numbers of 32 bits \(got 0.5\)"),
        ({"class_id": [math.nan]}, "class_id must be whole numbers of 32 bits"),
        ({"class_id": [math.inf]}, "class_id must be whole numbers of 32 bits"),
        ({"class_id": ["0"]}, "class_id must be whole numbers of 32 bits"),
        ({"class_id": numpy.array([2**31])}, "class_id must be whole numbers of 32 bits"),
        ({"track_id": [2**63]}, "track_id must be whole numbers of 64 bits"),
        ({"track_id": []}, r"track_id must have one value per box, 1 \(got 0\)"),
        ({"names": {7: "cat"}}, "names must have a label for class_id 0"),
        ({"names": ["cat"], "class_id": [-1]}, "names must have a label for class_id -1"),
        ({"names": {0: b"cat"}}, r"names\[0\] must be text"),
        ({"class_name": []}, r"class_name must have one value per box, 1 \(got 0\)"),
        ({"class_name": ["\ud800"]}, r"class_name\[0\] must be text without lone surrogates"),
        ({"class_name": ["cat"], "names": ["cat"]}, "class_name must be None if names are passed"),
    ],
)
def test_bad_arrays_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        DetectionArrays(**{"xyxy": BOX, "confidence": HALF, "class_id": [0], **arguments})


def test_what_the_server_will_reject_is_accepted() -> None:
    detections = DetectionArrays([[math.inf, -5.0, 1e300, 0.0]], [-math.inf], [-1])
    assert detections[0].box == Box(math.inf, -5.0, math.inf, 0.0)
    assert (detections[0].confidence, detections[0].class_id) == (-math.inf, -1)
