"""Checks of the rules for logged predictions, over columns.

Pure. The rules and their bounds are those of `proto/sightline/types/v1/prediction.proto`. Arrow
arrays are checked as a whole: Python objects are created only for broken rules.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest_service.receive.capture_window import EARLIEST_CAPTURE, CaptureWindow, to_us

MAX_IMAGE_ID_BYTES = 512
MAX_NAME_BYTES = 256
MAX_IMAGE_SIDE = 65_535
MAX_DETECTIONS = 10_000
MAX_LABELS = 64
MAX_LABEL_BYTES = 1024

SOURCES = (None, "device", "cloud")
"""Names of PredictionSource by number; None: unspecified."""
CLOUD_REASONS = (
    None,
    "requested",
    "device_failed",
    "device_timeout",
    "device_unsure",
    "device_slow",
    "no_device_model",
)
"""Names of CloudReason by number; None: the cloud was not used."""

_TRACE_ID = r"\A([0-9a-f]{32})?\z"
_Mask = NDArray[np.bool_]
_Array = NDArray[Any]


class Violation(NamedTuple):
    """The first rule that a prediction breaks."""

    field: str
    """Path of the field, such as `detections[3].confidence`."""
    reason: str
    """The rule, such as `CONFIDENCE_OUT_OF_RANGE`."""


class _Broken(NamedTuple):
    field: str
    reason: str
    mask: _Mask
    """Per row (of the predictions, the detections or the labels): True if it breaks the rule."""


def find_violations(predictions: pa.StructArray, window: CaptureWindow) -> dict[int, Violation]:
    """Return the first broken rule of each row that breaks one.

    Args:
        predictions: the column of `sightline.types.v1.Prediction` from a decoder: times in us,
            durations in ns, not a slice of another array.
        window: the plausible capture times.
    """
    violations: dict[int, Violation] = {}
    for rule in _row_rules(predictions, window):
        for row in np.flatnonzero(rule.mask):
            violations.setdefault(int(row), Violation(rule.field, rule.reason))
    detections = predictions.field("detections")
    for rule in _detection_rules(detections.values):
        _add_first(violations, rule, detections, lambda i: f"detections[{i}].")
    labels = predictions.field("labels")
    for rule in _label_rules(labels):
        _add_first(violations, rule, labels, lambda _: "")
    return violations


def _add_first(
    violations: dict[int, Violation], rule: _Broken, lists: pa.Array, prefix: Callable[[int], str]
) -> None:
    """Add a violation for the first item of each row's list that breaks the rule."""
    items = np.flatnonzero(rule.mask)
    if not len(items):
        return
    offsets = lists.offsets.to_numpy()
    rows, first = np.unique(np.searchsorted(offsets, items, side="right") - 1, return_index=True)
    for row, item in zip(rows, items[first], strict=True):
        path = prefix(int(item - offsets[row])) + rule.field
        violations.setdefault(int(row), Violation(path, rule.reason))


def _row_rules(rows: pa.StructArray, window: CaptureWindow) -> Iterator[_Broken]:
    yield from _text_rules(rows)
    for side in ("image_width", "image_height"):
        yield _Broken(side, f"{side.upper()}_OUT_OF_RANGE", _outside(rows, side, 0, MAX_IMAGE_SIDE))
    source = _numbers(rows, "source")
    yield _Broken("source", "SOURCE_REQUIRED", source == 0)
    yield _Broken("source", "SOURCE_UNKNOWN", _outside(rows, "source", 0, len(SOURCES) - 1))
    unknown = _outside(rows, "cloud_reason", 0, len(CLOUD_REASONS) - 1)
    yield _Broken("cloud_reason", "CLOUD_REASON_UNKNOWN", unknown)
    yield from _time_rules(rows, window)
    many = np.diff(rows.field("detections").offsets.to_numpy()) > MAX_DETECTIONS
    yield _Broken("detections", "TOO_MANY_DETECTIONS", many)
    many = np.diff(rows.field("labels").offsets.to_numpy()) > MAX_LABELS
    yield _Broken("labels", "TOO_MANY_LABELS", many)


def _text_rules(rows: pa.StructArray) -> Iterator[_Broken]:
    for name, limit in (
        ("image_id", MAX_IMAGE_ID_BYTES),
        ("model_name", MAX_NAME_BYTES),
        ("model_version", MAX_NAME_BYTES),
    ):
        size = _sizes(rows.field(name))
        if name != "model_version":
            yield _Broken(name, f"{name.upper()}_REQUIRED", size == 0)
        yield _Broken(name, f"{name.upper()}_TOO_LONG", size > limit)
    trace_id = rows.field("trace_id")
    if _sizes(trace_id).any():
        good = pc.match_substring_regex(trace_id, _TRACE_ID).to_numpy(zero_copy_only=False)
        yield _Broken("trace_id", "TRACE_ID_MALFORMED", ~good)


def _time_rules(rows: pa.StructArray, window: CaptureWindow) -> Iterator[_Broken]:
    captured = rows.field("captured_at")
    yield _Broken("captured_at", "CAPTURED_AT_REQUIRED", _absent(captured))
    times = _filled(captured)
    early = times < window.earliest
    yield _Broken("captured_at", "CAPTURED_AT_TOO_EARLY", early)
    late = times > window.latest
    yield _Broken("captured_at", "CAPTURED_AT_IN_FUTURE", late)
    yield _Broken(
        "inference_time", "INFERENCE_TIME_NEGATIVE", _filled(rows.field("inference_time")) < 0
    )


def _detection_rules(detections: pa.StructArray) -> Iterator[_Broken]:
    yield _Broken("class_id", "CLASS_ID_NEGATIVE", _numbers(detections, "class_id") < 0)
    size = _sizes(detections.field("class_name"))
    yield _Broken("class_name", "CLASS_NAME_TOO_LONG", size > MAX_NAME_BYTES)
    confidence = _numbers(detections, "confidence")
    # Not written as "< 0 or > 1": NaN must not pass.
    ok = (confidence >= 0) & (confidence <= 1)
    yield _Broken("confidence", "CONFIDENCE_OUT_OF_RANGE", ~ok)
    yield from _box_rules(detections.field("box"))


def _box_rules(boxes: pa.StructArray) -> Iterator[_Broken]:
    present = ~_absent(boxes)
    edges = {name: _numbers(boxes, name) for name in ("x_min", "y_min", "x_max", "y_max")}
    for name, edge in edges.items():
        yield _Broken(f"box.{name}", "BOX_NOT_FINITE", present & ~np.isfinite(edge))
    for name in ("x_min", "y_min"):
        yield _Broken(f"box.{name}", "BOX_NEGATIVE", present & (edges[name] < 0))
    for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
        yield _Broken(f"box.{high}", "BOX_INSIDE_OUT", present & (edges[high] < edges[low]))


def _label_rules(labels: pa.MapArray) -> Iterator[_Broken]:
    yield _Broken("labels", "LABEL_KEY_TOO_LONG", _sizes(labels.keys) > MAX_LABEL_BYTES)
    yield _Broken("labels", "LABEL_VALUE_TOO_LONG", _sizes(labels.items) > MAX_LABEL_BYTES)


def _numbers(rows: pa.StructArray, name: str) -> _Array:
    values: _Array = rows.field(name).to_numpy(zero_copy_only=False)
    return values


def _outside(rows: pa.StructArray, name: str, low: int, high: int) -> _Mask:
    values = _numbers(rows, name)
    return (values < low) | (values > high)


def _sizes(texts: pa.StringArray) -> _Array:
    """Return the lengths in bytes of UTF-8."""
    sizes: _Array = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    return sizes


def _absent(values: pa.Array) -> _Mask:
    absent: _Mask = values.is_null().to_numpy(zero_copy_only=False)
    return absent


def _filled(times: pa.Array) -> _Array:
    """Return times or durations as integers in their unit, with a valid value for absent ones."""
    valid = to_us(EARLIEST_CAPTURE)
    numbers: _Array = times.view(pa.int64()).fill_null(valid).to_numpy(zero_copy_only=False)
    return numbers
