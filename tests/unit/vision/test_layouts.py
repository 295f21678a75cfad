"""Layouts, told apart by what is declared and by the numbers of a run on noise."""

from collections.abc import Callable

import numpy as np
import pytest

from vision import Layout, ModelError, ModelMetadata, detect_layout

ULTRALYTICS = ModelMetadata(by_ultralytics=True)
NMS_INSIDE = ModelMetadata(by_ultralytics=True, end_to_end=True)
RTDETR = ModelMetadata(by_ultralytics=True, is_rtdetr=True)
SIZE = 64
GRID = [(SIZE // stride, stride) for stride in (8, 16, 32)]


def yolov5_rows(classes: int, anchors: int = 3) -> np.ndarray:
    """Return what YOLOv5 computes from random numbers: centres near cells, sigmoid scores."""
    rng = np.random.default_rng(5)
    levels = []
    for cells, stride in GRID:
        y, x = np.mgrid[:cells, :cells]
        corner = np.tile(np.stack([x, y], axis=-1).reshape(-1, 2), (anchors, 1))
        share = rng.random((len(corner), 5 + classes))
        centre = (2 * share[:, :2] - 0.5 + corner) * stride
        size = (2 * share[:, 2:4]) ** 2 * 4 * stride
        levels.append(np.concatenate([centre, size, share[:, 4:]], axis=1))
    return np.concatenate(levels).astype(np.float32)


def end_to_end_rows(classes: int, found: int = 5, rows: int = 300) -> np.ndarray:
    rng = np.random.default_rng(6)
    output = np.zeros((rows, 6), dtype=np.float32)
    corner = rng.random((found, 2)) * 30
    output[:found, :2], output[:found, 2:4] = corner, corner + 1 + rng.random((found, 2)) * 30
    output[:found, 4] = np.sort(rng.random(found))[::-1]
    output[:found, 5] = rng.integers(0, classes, found)
    return output


def rtdetr_rows(classes: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    output = rng.random((300, 6), dtype=np.float32)
    output[:, 4] = np.sort(output[:, 4])[::-1]
    output[:, 5] = rng.integers(0, classes, 300)
    return output


def probe(output: np.ndarray) -> Callable[[], tuple[np.ndarray, tuple[int, int]]]:
    return lambda: (output, (SIZE, SIZE))


@pytest.mark.parametrize(
    ("shape", "classes", "metadata", "layout"),
    [
        ((1, 84, 8400), 80, None, Layout.YOLOV8),
        ((4, 6, 8400), 2, ModelMetadata(), Layout.YOLOV8),
        ((1, 300, 6), 80, NMS_INSIDE, Layout.END_TO_END),
        ((1, 300, 6), 80, ModelMetadata(end_to_end=True), Layout.END_TO_END),
        ((1, 300, 6), 1, NMS_INSIDE, Layout.END_TO_END),
        ((1, 300, 6), 80, ULTRALYTICS, Layout.END_TO_END),
        ((1, 300, 6), 1, ULTRALYTICS, Layout.END_TO_END),
        ((1, 300, 6), 296, NMS_INSIDE, Layout.END_TO_END),
        ((1, 300, 6), 80, RTDETR, Layout.RTDETR),
        ((1, 300, 84), 80, RTDETR, Layout.RTDETR_SCORES),
    ],
)
def test_metadata_tells_layouts_apart(
    shape: tuple[int, ...], classes: int, metadata: ModelMetadata | None, layout: Layout
) -> None:
    assert detect_layout(shape, classes, metadata) is layout


@pytest.mark.parametrize(
    ("shape", "classes", "layout"),
    [
        ((1, 25200, 6), 1, Layout.YOLOV5),
        ((1, 25200, 6), 1, Layout.END_TO_END),
        ((1, 300, 6), 80, Layout.RTDETR),
        ((1, 300, 84), 80, Layout.RTDETR_SCORES),
        ((1, 84, 85), 80, Layout.YOLOV8),
        ((1, 84, 85), 80, Layout.YOLOV5),
    ],
)
def test_a_declaration_decides_without_a_run(
    shape: tuple[int, ...], classes: int, layout: Layout
) -> None:
    assert detect_layout(shape, classes, declared=layout) is layout


@pytest.mark.parametrize(
    ("output", "classes", "layout"),
    [
        (yolov5_rows(1), 1, Layout.YOLOV5),
        (yolov5_rows(80), 80, Layout.YOLOV5),
        (end_to_end_rows(1), 1, Layout.END_TO_END),
        (end_to_end_rows(1, found=1), 1, Layout.END_TO_END),
        (end_to_end_rows(80, rows=252), 80, Layout.END_TO_END),
        (rtdetr_rows(80), 80, Layout.RTDETR),
        (rtdetr_rows(1), 1, Layout.RTDETR),
    ],
)
def test_without_a_word_the_numbers_of_a_run_decide(
    output: np.ndarray, classes: int, layout: Layout
) -> None:
    assert detect_layout((1, *output.shape), classes, probe=probe(output)) is layout


def test_the_two_outputs_of_rtdetr_with_two_classes_are_told_apart() -> None:
    scores = np.random.default_rng(8).random((300, 6), dtype=np.float32)
    for output, layout in ((scores, Layout.RTDETR_SCORES), (rtdetr_rows(2), Layout.RTDETR)):
        assert detect_layout((1, 300, 6), 2, RTDETR, probe=probe(output)) is layout


@pytest.mark.parametrize(
    "output",
    [
        np.zeros((300, 6), dtype=np.float32),  # no object in noise: nothing to go by
        np.tile(np.array([0, 0, 0, 0, 0.5, 0], dtype=np.float32), (300, 1)),  # boxes of size 0
        yolov5_rows(1) * 2,  # off the grid
        yolov5_rows(1, anchors=1),  # YOLOX
        yolov5_rows(1)[:-1],  # a grid of another size
        np.full((252, 6), np.nan, dtype=np.float32),
    ],
)
def test_numbers_that_decide_nothing_are_refused_with_the_way_out(output: np.ndarray) -> None:
    with pytest.raises(
        ModelError, match=r"end_to_end or yolov5 or rtdetr.*set the layout"
    ) as caught:
        detect_layout((1, *output.shape), 1, probe=probe(output))
    assert caught.value.reason == "MODEL_UNSUPPORTED"


@pytest.mark.parametrize(
    ("shape", "classes", "metadata", "declared"),
    [
        ((1, 84, 8400), 80, ModelMetadata(end_to_end=True), None),
        ((1, 84, 8400), 80, RTDETR, None),
        ((1, 8400, 84), 80, ModelMetadata(), None),
        ((1, 8400, 84), 80, ULTRALYTICS, None),
        ((1, 116, 8400), 80, ModelMetadata(), None),
        ((84, 8400), 80, ModelMetadata(), None),
        ((1, 25200, 85), 80, ULTRALYTICS, None),
        ((1, 300, 6), 80, None, None),
        ((1, 25200, 6), 1, None, None),
        ((1, 25200, 85), 80, None, None),
        ((1, 25200, 6), 2, None, Layout.YOLOV5),
        ((1, 84, 8400), 80, None, Layout.END_TO_END),
    ],
)
def test_other_outputs_are_refused(
    shape: tuple[int, ...],
    classes: int,
    metadata: ModelMetadata | None,
    declared: Layout | None,
) -> None:
    with pytest.raises(ModelError, match=r"the output.*set the layout") as caught:
        detect_layout(shape, classes, metadata, declared=declared)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


@pytest.mark.parametrize(
    ("shape", "extra", "layout"),
    [
        ((1, 116, 8400), 32, Layout.YOLOV8),
        ((1, 300, 38), 32, Layout.END_TO_END),
        ((1, 81, 300), 1, None),
    ],
)
def test_columns_of_the_task_are_counted(
    shape: tuple[int, ...], extra: int, layout: Layout | None
) -> None:
    if layout is not None:
        assert detect_layout(shape, 80, ULTRALYTICS, extra=extra) is layout
        return
    with pytest.raises(ModelError, match=r"4 \+ 80 classes \+ 1 of the task"):
        detect_layout(shape, 80, ULTRALYTICS, extra=extra)
