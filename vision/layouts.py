"""Layouts of a detector's output, and how the layout of a model is determined.

The number of columns does not determine it: YOLOv5 with one class, RT-DETR and YOLOv10 have six.
The declaration of the caller decides, or else the exporter's metadata. Where neither does, the
model is run on noise: only one layout explains the numbers, or the model is refused.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vision.errors import ModelError
from vision.metadata import ModelMetadata

ROUNDING = 1.01
"""Highest score: a quantised sigmoid may slightly exceed 1; a logit exceeds it by far."""

_ANCHORS = 3  # of each cell of YOLOv5 and YOLOv7
# Strides of their levels, and of their models with more, fewer or finer levels.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))


class Layout(StrEnum):
    """The layout of a detector's output. Extra columns of the task follow in each row."""

    YOLOV8 = "yolov8"
    """``[batch, 4 + classes, anchors]``, boxes as centre and size: YOLOv8, 9, 11, 12, YOLOv5u;
    needs NMS."""
    END_TO_END = "end_to_end"
    """``[batch, detections, 6]``, rows x1, y1, x2, y2, confidence, class: YOLOv10, YOLO26, and
    exports with NMS inside. Rotated boxes as centre and size."""
    YOLOV5 = "yolov5"
    """``[batch, anchors, 5 + classes]``, boxes as centre and size, objectness, a score for each
    class, which is multiplied by the objectness: YOLOv5 and YOLOv7 by their own exporters; needs
    NMS."""
    RTDETR = "rtdetr"
    """``[batch, queries, 6]``, rows x, y, width, height in 0..1 of the input, confidence, class:
    RT-DETR by ultralytics 8.4."""
    RTDETR_SCORES = "rtdetr_scores"
    """``[batch, queries, 4 + classes]``, rows x, y, width, height in 0..1 of the input, and a score
    for each class: RT-DETR by earlier versions of ultralytics."""


_END_TO_END_SHAPES = (Layout.END_TO_END, Layout.RTDETR)
_RTDETR = (Layout.RTDETR, Layout.RTDETR_SCORES)

Probe = Callable[[], tuple[NDArray[np.float32], tuple[int, int]]]
"""Run the model on noise; return one row of the output, and height and width of the input."""


def detect_layout(
    output_shape: Sequence[int],
    n_classes: int,
    metadata: ModelMetadata | None = None,
    *,
    extra: int = 0,
    declared: Layout | None = None,
    probe: Probe | None = None,
) -> Layout:
    """Return the layout of an output of ``[batch, rows, columns]``.

    Args:
        output_shape: sizes of the three axes; the first one is not used.
        n_classes: number of labels of the model.
        metadata: what the exporter says; None for nothing.
        extra: columns of the task after the classes: mask coefficients, keypoints or an angle.
        declared: the caller's declaration, which outweighs the metadata; None for none.
        probe: runs the model where nothing else decides; None to refuse such a model.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``: the output has no known layout, or not the declared one,
            or several layouts explain it; ``MODEL_RUN_FAILED``: the run on noise failed.
    """
    metadata = metadata or ModelMetadata()
    shape = list(output_shape)
    fitting = _fitting(shape, n_classes, extra)
    if declared is not None:
        if declared not in fitting:
            raise _refused(f"the layout is declared as {declared}, but the output is {shape}")
        return declared
    possible = [layout for layout in fitting if _is_possible(layout, metadata)]
    if not possible:
        raise _refused(
            f"the output is {shape}{_said(metadata)}: neither [batch, {4 + n_classes + extra}, "
            f"anchors] (4 + {n_classes} classes{_more(extra)}) nor [batch, detections, {6 + extra}]"
            f" nor [batch, anchors, {5 + n_classes + extra}]"
        )
    if len(possible) == 1 and _is_vouched_for(possible[0], metadata):
        return possible[0]
    return _by_noise(possible, shape, n_classes, probe)


def _fitting(shape: list[int], n_classes: int, extra: int) -> list[Layout]:
    """Return the layouts that an output of this shape can have."""
    if len(shape) != 3:
        return []
    columns = {
        Layout.END_TO_END: 6 + extra,
        Layout.YOLOV5: 5 + n_classes + extra,
        Layout.RTDETR: 6,
        Layout.RTDETR_SCORES: 4 + n_classes,
    }
    fitting = [Layout.YOLOV8] if shape[1] == 4 + n_classes + extra else []
    fitting += [layout for layout, expected in columns.items() if shape[2] == expected]
    return [layout for layout in fitting if layout not in _RTDETR or extra == 0]


def _is_possible(layout: Layout, metadata: ModelMetadata) -> bool:
    """Return False if the metadata rules a layout out."""
    if metadata.is_rtdetr:
        return layout in _RTDETR
    if metadata.end_to_end:
        return layout is Layout.END_TO_END
    if metadata.by_ultralytics:  # its exporter writes neither of the others for other heads
        return layout in (Layout.YOLOV8, Layout.END_TO_END)
    return layout is not Layout.RTDETR_SCORES  # a transposed YOLOv8 has the same shape


def _is_vouched_for(layout: Layout, metadata: ModelMetadata) -> bool:
    """Return True if a layout needs no run on noise: its exporter is known or its shape unique."""
    return layout is Layout.YOLOV8 or metadata.by_ultralytics or metadata.end_to_end


def _by_noise(
    possible: list[Layout], shape: list[int], n_classes: int, probe: Probe | None
) -> Layout:
    """Return the only layout that explains the output for a picture of noise."""
    seen: list[Layout] = []
    if probe is not None:
        output, input_size = probe()
        seen = [each for each in possible if _explains(each, output, n_classes, input_size)]
    if len(seen) == 1:
        return seen[0]
    names = " or ".join(seen or possible)
    run = "" if probe is None else f", and a run on noise fits {'several' if seen else 'none'}"
    raise _refused(
        f"the output {shape} of {n_classes} classes may be {names}, the metadata does not say "
        f"which{run}"
    )


def _explains(
    layout: Layout, output: NDArray[np.float32], n_classes: int, input_size: tuple[int, int]
) -> bool:
    """Return True if all numbers of an output make sense in a layout."""
    match layout:
        case Layout.YOLOV8:
            return _are_scores(output[4 : 4 + n_classes]) and bool((output[2:4] >= 0).all())
        case Layout.END_TO_END:
            return _are_ranked(output, n_classes) and _are_corners(output)
        case Layout.YOLOV5:
            return _are_scores(output[:, 4 : 5 + n_classes]) and _are_on_grid(output, input_size)
        case Layout.RTDETR:
            return _are_ranked(output, n_classes) and _are_shares(output)
        case Layout.RTDETR_SCORES:
            scores = output[:, 4:]
            return _are_scores(scores) and bool((scores != np.rint(scores)).any(axis=0).all())


def _are_scores(values: NDArray[np.float32]) -> bool:
    return bool(((values >= 0) & (values <= ROUNDING)).all())


def _are_ranked(rows: NDArray[np.float32], n_classes: int) -> bool:
    """Return True if columns 4 and 5 are a score and a class, at least one above 0."""
    score, number = rows[:, 4], rows[:, 5]
    classes = (number == np.rint(number)) & (number >= 0) & (number < n_classes)
    return _are_scores(score) and bool(classes.all()) and bool(score.max(initial=0) > 0)


def _are_corners(rows: NDArray[np.float32]) -> bool:
    """Return True if boxes are corners in pixels, not of size 0 and not in 0..1."""
    corners = rows[rows[:, 4] > 0, :4]
    ordered = bool((corners[:, 2:] >= corners[:, :2]).all())
    return ordered and float(np.ptp(corners)) > 2


def _are_shares(rows: NDArray[np.float32]) -> bool:
    """Return True if all boxes are centres and sizes in 0..1, and the surest row is the first."""
    inside = (rows[:, :4] > 0) & (rows[:, :4] <= 1)
    return bool(inside.all()) and bool((np.diff(rows[:, 4]) <= 0).all())


def _are_on_grid(rows: NDArray[np.float32], input_size: tuple[int, int]) -> bool:
    """Return True if the centre of each box is where YOLOv5 decodes it to, near its grid cell.

    A centre lies within 1.5 cells of its cell's first corner, since YOLOv5 and YOLOv7 compute
    it as ``(2 sigmoid - 0.5 + cell) * stride``; older versions stay even closer. YOLOX, whose
    columns are the same, has one anchor for each cell and expects another preprocessing.
    """
    height, width = input_size
    for strides in _STRIDES:
        levels = [(height // stride, width // stride, stride) for stride in strides]
        if len(rows) != _ANCHORS * sum(down * across for down, across, _ in levels):
            continue
        centres = np.concatenate([_cell_centres(*level) for level in levels])
        reach = np.repeat(
            [1.1 * stride for stride in strides], [_ANCHORS * h * w for h, w, _ in levels]
        )
        near = np.abs(rows[:, :2] - centres) <= reach[:, None]
        if near.all() and (rows[:, 2:4] >= 0).all():
            return True
    return False


def _cell_centres(down: int, across: int, stride: int) -> NDArray[np.float64]:
    """Return the centres of a level's cells for each anchor, ``[anchors * down * across, 2]``."""
    y, x = np.meshgrid(np.arange(down), np.arange(across), indexing="ij")
    centres = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride
    return np.tile(centres, (_ANCHORS, 1))


def _said(metadata: ModelMetadata) -> str:
    if metadata.is_rtdetr:
        return ", and its metadata declares RT-DETR"
    return ", and its metadata declares end to end" if metadata.end_to_end else ""


def _more(extra: int) -> str:
    return f" + {extra} of the task" if extra else ""


def _refused(what: str) -> ModelError:
    layouts = ", ".join(Layout)
    return ModelError(
        "MODEL_UNSUPPORTED",
        f"{what} (set the layout, in model.yaml or as an argument, to one of {layouts}, and check "
        "that the labels are those of the model)",
    )
