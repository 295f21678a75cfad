"""Outputs of both layouts, decoded; suppression against the definition."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision import (
    Layout,
    Letterbox,
    ModelError,
    YoloHead,
    decode_end_to_end,
    decode_output,
    decode_yolov8,
)

ROW = {
    Layout.YOLOV8: 7,
    Layout.END_TO_END: 6,
    Layout.YOLOV5: 8,
    Layout.RTDETR: 6,
    Layout.RTDETR_SCORES: 7,
}
"""Values of an object in each layout, for three classes."""
WHOLE = Letterbox(scale_x=1, scale_y=1, pad_x=0, pad_y=0, width=640, height=640)


def yolov8(boxes: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Return an output of boxes given by their corners, and the scores of each box."""
    corners, each = np.array(boxes, dtype=np.float32), np.array(scores, dtype=np.float32)
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    return np.concatenate([centre, corners[:, 2:] - corners[:, :2], each], axis=1).T


def as_output(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """Return an output of objects in rows, which are the columns of the YOLOv8 layout."""
    return rows.T if layout is Layout.YOLOV8 else rows


def overlap(first: np.ndarray, other: np.ndarray) -> float:
    across = min(first[2], other[2]) - max(first[0], other[0])
    down = min(first[3], other[3]) - max(first[1], other[1])
    shared = max(across, 0) * max(down, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, other)]
    return float(shared / (sum(areas) - shared))


def suppressed(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float) -> set[int]:
    """Greedy suppression by its definition, one pair at a time."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [k for k in kept if classes[k] == classes[index]]
        if all(overlap(boxes[k], boxes[index]) <= iou for k in rivals):
            kept.append(int(index))
    return set(kept)


def test_boxes_are_mapped_to_the_image() -> None:
    box = Letterbox(scale_x=0.5, scale_y=0.5, pad_x=0, pad_y=140, width=1280, height=720)
    output = yolov8([[100, 240, 200, 290]], [[0.1, 0.9, 0.3]])
    detections = decode_yolov8(output, box)
    assert detections.xyxy.tolist() == [[200, 200, 400, 300]]
    assert detections.class_id.tolist() == [1]
    assert detections.confidence == pytest.approx([0.9])
    assert detections.xyxy.dtype == np.float32
    assert detections.confidence.dtype == np.float32
    assert detections.class_id.dtype == np.int64
    assert len(detections) == 1


def test_same_class_is_suppressed_and_another_class_is_not() -> None:
    boxes = [[0, 0, 100, 100], [5, 0, 105, 100], [5, 0, 105, 100], [300, 0, 400, 100]]
    detections = decode_yolov8(yolov8(boxes, [[0.8, 0], [0.9, 0], [0, 0.7], [0.6, 0]]), WHOLE)
    assert detections.confidence == pytest.approx([0.9, 0.7, 0.6])
    assert detections.class_id.tolist() == [0, 1, 0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.45, 0.7, 0.95]))
def test_suppression_is_the_definition(seed: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 60, (40, 2)), rng.integers(1, 40, (40, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(float)
    classes = rng.integers(0, 3, 40)
    scores = rng.permutation(np.linspace(0.3, 0.9, 40)).astype(np.float32)
    table = np.zeros((40, 3), dtype=np.float32)
    table[np.arange(40), classes] = scores
    detections = decode_yolov8(yolov8(boxes.tolist(), table.tolist()), WHOLE, iou=iou)
    expected = suppressed(boxes, scores, classes, iou)
    assert sorted(detections.confidence.tolist()) == sorted(scores[list(expected)].tolist())


def test_distant_classes_do_not_touch_for_want_of_precision() -> None:
    # Overlaps of 0.699 and 0.701 around the default of 0.7, in the last of many classes.
    boxes: list[list[float]] = [[0, 0, 100, 100], [0, 0, 69.9, 100]]
    boxes += [[300, 0, 400, 100], [300, 0, 370.1, 100]]
    scores = np.zeros((4, 10_000), dtype=np.float32)
    scores[:, -1] = [0.9, 0.8, 0.7, 0.6]
    detections = decode_yolov8(yolov8(boxes, scores.tolist()), WHOLE)
    assert detections.confidence == pytest.approx([0.9, 0.8, 0.7])


def test_confidence_must_be_above_the_threshold() -> None:
    output = yolov8([[0, 0, 9, 9], [20, 0, 29, 9]], [[0.5], [0.50001]])
    assert decode_yolov8(output, WHOLE, confidence=0.5).confidence == pytest.approx([0.50001])


def test_the_surest_are_kept() -> None:
    boxes = [[20.0 * n, 0, 20.0 * n + 9, 9] for n in range(10)]
    scores = [[0.3 + 0.05 * n] for n in range(10)]
    detections = decode_yolov8(yolov8(boxes, scores), WHOLE, max_detections=3)
    assert detections.confidence == pytest.approx([0.75, 0.7, 0.65])


def test_only_the_surest_enter_suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.yolo._MAX_CANDIDATES", 2)
    boxes = [[20.0 * n, 0, 20.0 * n + 9, 9] for n in range(4)]
    detections = decode_yolov8(yolov8(boxes, [[0.4], [0.8], [0.6], [0.9]]), WHOLE)
    assert detections.confidence == pytest.approx([0.9, 0.8])


def test_no_candidates_are_no_detections() -> None:
    detections = decode_yolov8(np.zeros((84, 8400), dtype=np.float32), WHOLE)
    assert (detections.xyxy.shape, len(detections)) == ((0, 4), 0)
    rows = np.zeros((300, 6), dtype=np.float32)
    assert len(decode_end_to_end(rows, WHOLE, n_classes=80, confidence=0)) == 0


def test_boxes_in_the_padding_or_inside_out_are_left_out() -> None:
    box = Letterbox(scale_x=1, scale_y=1, pad_x=0, pad_y=100, width=640, height=440)
    boxes = [[0, 0, 50, 90], [90, 200, 80, 210], [10, 120, 20, 130]]
    detections = decode_yolov8(yolov8(boxes, [[0.9], [0.9], [0.8]]), box)
    assert detections.xyxy.tolist() == [[10, 20, 20, 30]]


def test_end_to_end_rows_are_taken_as_they_are() -> None:
    box = Letterbox(scale_x=0.5, scale_y=0.5, pad_x=0, pad_y=140, width=1280, height=720)
    rows = np.array(
        [
            [100, 240, 200, 290, 0.5, 2],
            [100, 240, 200, 290, 0.9, 2],  # overlapping on purpose: nothing is suppressed
            [0, 140, 10, 150, 0.25, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        dtype=np.float32,
    )
    detections = decode_end_to_end(rows, box, n_classes=3)
    assert detections.xyxy.tolist() == [[200, 200, 400, 300]] * 2
    assert detections.confidence == pytest.approx([0.9, 0.5])
    assert detections.class_id.tolist() == [2, 2]
    assert len(decode_end_to_end(rows, box, n_classes=3, max_detections=1)) == 1


@pytest.mark.parametrize("layout", [Layout.RTDETR, Layout.RTDETR_SCORES])
def test_boxes_of_rtdetr_are_shares_of_the_whole_image(layout: Layout) -> None:
    box = Letterbox(scale_x=0.5, scale_y=1, pad_x=0, pad_y=0, width=1280, height=640)
    rows = np.zeros((3, ROW[layout]), dtype=np.float32)
    rows[:, :4] = [[0.5, 0.5, 0.25, 0.5], [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.4, 0.4]]
    confidence = np.array([0.5, 0.2, 0.75], dtype=np.float32)
    if layout is Layout.RTDETR:
        rows[:, 4], rows[:, 5] = confidence, [2, 0, 1]
    else:
        rows[[0, 1, 2], [6, 4, 5]] = confidence
    head = YoloHead(layout, 3)
    detections = decode_output(head, rows, box, (640, 640), max_detections=2)
    expected = [[896, 448, 1280, 640], [480, 160, 800, 480]]
    assert detections.xyxy == pytest.approx(np.array(expected), abs=0.01)
    assert detections.confidence.tolist() == [0.75, 0.5]
    assert detections.class_id.tolist() == [1, 2]


def test_masks_need_prototypes() -> None:
    head = YoloHead(Layout.YOLOV8, 1, "segment", extra=4)
    output = np.array([[50, 50, 20, 20, 0.9, 1, 0, 0, 0]], dtype=np.float32).T
    assert decode_output(head, output, WHOLE, (640, 640)).masks is None
    with pytest.raises(ValueError, match="prototypes must be given"):
        decode_output(head, output, WHOLE, (640, 640), mask_format="rle")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_prototypes_must_be_numbers_only_where_an_object_is(value: float) -> None:
    head = YoloHead(Layout.YOLOV8, 1, "segment", extra=2)
    output = np.array([[60, 60, 40, 40, 0.9, 1, 0]], dtype=np.float32).T
    prototypes = np.ones((2, 160, 160), dtype=np.float32)

    def masks() -> tuple[object, ...] | None:
        return decode_output(
            head, output, WHOLE, (640, 640), mask_format="rle", prototypes=prototypes
        ).masks

    full = masks()
    prototypes[:, 100, 100] = value  # half precision overflows far from every object
    assert masks() == full
    prototypes[1, 15, 15] = value
    with pytest.raises(ModelError, match="NaN or infinity in a mask") as caught:
        masks()
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"


@pytest.mark.parametrize("number", [-1, 3, 1.5])
def test_a_class_that_the_model_does_not_have_is_an_error(number: float) -> None:
    rows = np.array([[0, 0, 9, 9, 0.9, number]], dtype=np.float32)
    with pytest.raises(ModelError, match=r"0\.\.2") as caught:
        decode_end_to_end(rows, WHOLE, n_classes=3)
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", Layout)
def test_a_score_that_is_no_number_is_an_error(layout: Layout, value: float) -> None:
    output = np.zeros((7, 6) if layout is Layout.YOLOV8 else (7, ROW[layout]), dtype=np.float32)
    output[(4, 3) if layout is Layout.YOLOV8 else (3, 4)] = value
    with pytest.raises(ModelError, match="NaN or infinity in a score") as caught:
        decode_output(YoloHead(layout, 3), output, WHOLE, (640, 640))
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", Layout)
def test_a_box_that_is_no_number_is_an_error_only_where_an_object_is(
    layout: Layout, value: float
) -> None:
    rows = np.zeros((2, ROW[layout]), dtype=np.float32)
    rows[:, :4] = [100, 100, 200, 200]
    rows[0, 4:6] = [0.9, 1] if layout is Layout.YOLOV5 else [0.9, 0]
    head = YoloHead(layout, 3)
    rows[1, 2] = value  # half precision overflows in an anchor whose score is 0
    assert len(decode_output(head, as_output(rows, layout), WHOLE, (640, 640))) == 1
    rows[0, 2] = value
    with pytest.raises(ModelError, match="NaN or infinity in a detection") as caught:
        decode_output(head, as_output(rows, layout), WHOLE, (640, 640))
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"


def test_scores_are_probabilities() -> None:
    slightly = decode_yolov8(yolov8([[0, 0, 9, 9]], [[1.004]]), WHOLE)
    assert slightly.confidence.tolist() == [1]
    with pytest.raises(ModelError, match=r"score of 3\.5"):
        decode_yolov8(yolov8([[0, 0, 9, 9]], [[3.5]]), WHOLE)
    with pytest.raises(ModelError, match=r"score of 3\.5"):
        decode_end_to_end(np.array([[0, 0, 9, 9, 3.5, 0]], np.float32), WHOLE, n_classes=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", -0.1),
        ("confidence", 1.1),
        ("confidence", float("nan")),
        ("iou", 2),
        ("max_detections", 0),
    ],
)
def test_parameters_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        decode_yolov8(np.zeros((5, 10), np.float32), WHOLE, **{name: value})  # type: ignore[arg-type]
