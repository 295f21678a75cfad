"""Conversion of ultralytics results to records. It does not import ultralytics."""

import math
from typing import TYPE_CHECKING, Any

from edge.detect.masks import masks_of_results
from edge.detect.result_columns import ModelNames, ResultColumns
from edge.records import Detection
from servicekit.mask_formats import MaskFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ultralytics.engine.results import Results


def classes_of(results: "Results", top_k: int = 5) -> tuple[Detection, ...]:
    """Return the classes of ultralytics' `Results`, most probable first; empty if it has none.

    Args:
        results: the results of one image.
        top_k: maximum number of classes, >= 1.
    """
    if results.probs is None:
        return ()
    shares = _host(results.probs.data).reshape(-1).tolist()
    best = sorted(range(len(shares)), key=shares.__getitem__, reverse=True)[:top_k]
    names = ModelNames(results.names)
    return tuple(Detection(index, names[index], shares[index]) for index in best)


def size_of(results: "Results") -> tuple[int, int]:
    """Return the height and width of the image of `Results` in pixels; zeros: not known."""
    try:
        height, width = results.orig_shape[:2]
        return int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        return 0, 0


def columns_of(
    results: "Results", mask_format: MaskFormat, polygon_tolerance: float
) -> ResultColumns | None:
    """Return the objects of ultralytics' `Results`; None if the results have no boxes.

    They have the keypoints of the task pose and the masks of the task segment. For the task obb
    they have rotated boxes with angles in [0, pi/2), and the boxes around them. Boxes are clipped
    to the image, since those of a tracker may exceed it.

    Args:
        results: the results of one image.
        mask_format: format of the masks.
        polygon_tolerance: largest distance between a polygon and its mask's outline in pixels.
    """
    obb = getattr(results, "obb", None)
    found = results.boxes if obb is None else obb
    if found is None:
        return None
    rows, order = _host(found.data), None
    scores = rows[:, -2].tolist()
    if scores != sorted(scores, reverse=True):  # trackers change the order
        order = (-rows[:, -2]).argsort(kind="stable")
        rows = rows[order]
    boxes, rotated = rows[:, :4], None
    if obb is not None:
        from vision.rotated import hull, regularize

        rotated = regularize(rows[:, :5].astype("f4"))  # ultralytics' results are not
        boxes = hull(rotated)
    height, width = size = size_of(results)
    if rotated is not None or found.is_track:
        right, bottom = width or math.inf, height or math.inf
        boxes = boxes.clip(0, (right, bottom, right, bottom))
    outlines = getattr(results, "masks", None)
    points = getattr(results, "keypoints", None)
    return ResultColumns(
        boxes=boxes,
        confidence=rows[:, -2],
        class_id=rows[:, -1],
        names=ModelNames(results.names),
        track_id=rows[:, -3] if found.is_track else None,
        rotated=rotated,
        keypoints=None if points is None or not len(rows) else _ordered(points.data, order),
        masks=None
        if outlines is None or mask_format == "off"
        else lambda left_out: masks_of_results(
            _ordered(outlines.data, order),
            size,
            mask_format,
            polygon_tolerance,
            left_out,
        ),
    )


def _ordered(data: Any, order: "NDArray[Any] | None") -> Any:  # noqa: ANN401 - see `_host`
    return _host(data) if order is None else _host(data)[order]


def _host(data: Any) -> Any:  # noqa: ANN401 - a tensor of torch or an array of numpy
    """Return a tensor as an array of numpy."""
    if not hasattr(data, "cpu"):
        return data
    try:
        return data.cpu().numpy()
    except (TypeError, RuntimeError):  # bfloat16, which numpy lacks, or a gradient
        return data.detach().cpu().float().numpy()
