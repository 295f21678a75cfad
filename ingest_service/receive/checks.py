"""Checks of the rules for logged predictions, over columns.

Pure. The rules and their bounds are those of `proto/sightline/types/v1/prediction.proto`. Arrow
arrays are checked as a whole: Python objects are created only for broken rules.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest_service.receive.capture_window import EARLIEST_CAPTURE, CaptureWindow, to_us
from ingest_service.receive.geometry_checks import geometry_rules
from ingest_service.receive.rules import (
    Broken,
    ListLevel,
    NumberArray,
    Violation,
    absent,
    add_violations,
    numbers,
    outside,
    sizes,
)
from servicekit.contract_bounds import (
    MAX_CLASS_NAME_BYTES,
    MAX_DETECTIONS,
    MAX_IMAGE_ID_BYTES,
    MAX_IMAGE_SIDE,
    MAX_LABEL_BYTES,
    MAX_LABELS,
    MAX_MODEL_NAME_BYTES,
)

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


def find_violations(predictions: pa.StructArray, window: CaptureWindow) -> dict[int, Violation]:
    """Return the first broken rule of each row that breaks one.

    Args:
        predictions: the column of `sightline.types.v1.Prediction` from a decoder: times in us,
            durations in ns, not a slice of another array.
        window: the plausible capture times.
    """
    violations: dict[int, Violation] = {}
    for rule in _row_rules(predictions, window):
        add_violations(violations, rule, ())
    detections = predictions.field("detections")
    within = ListLevel("detections", detections.offsets.to_numpy())
    for rule in _detection_rules(detections.values):
        add_violations(violations, rule, (within,))
    for rule, levels in geometry_rules(detections.values):
        add_violations(violations, rule, (within, *levels))
    labels = predictions.field("labels")
    for rule in _label_rules(labels):
        add_violations(violations, rule, (ListLevel("", labels.offsets.to_numpy()),))
    return violations


def _row_rules(rows: pa.StructArray, window: CaptureWindow) -> Iterator[Broken]:
    yield from _text_rules(rows)
    for side in ("image_width", "image_height"):
        yield Broken(side, f"{side.upper()}_OUT_OF_RANGE", outside(rows, side, 0, MAX_IMAGE_SIDE))
    source = numbers(rows, "source")
    yield Broken("source", "SOURCE_REQUIRED", source == 0)
    yield Broken("source", "SOURCE_UNKNOWN", outside(rows, "source", 0, len(SOURCES) - 1))
    unknown = outside(rows, "cloud_reason", 0, len(CLOUD_REASONS) - 1)
    yield Broken("cloud_reason", "CLOUD_REASON_UNKNOWN", unknown)
    yield from _time_rules(rows, window)
    many = np.diff(rows.field("detections").offsets.to_numpy()) > MAX_DETECTIONS
    yield Broken("detections", "TOO_MANY_DETECTIONS", many)
    many = np.diff(rows.field("labels").offsets.to_numpy()) > MAX_LABELS
    yield Broken("labels", "TOO_MANY_LABELS", many)


def _text_rules(rows: pa.StructArray) -> Iterator[Broken]:
    for name, limit in (
        ("image_id", MAX_IMAGE_ID_BYTES),
        ("model_name", MAX_MODEL_NAME_BYTES),
        ("model_version", MAX_MODEL_NAME_BYTES),
    ):
        size = sizes(rows.field(name))
        if name != "model_version":
            yield Broken(name, f"{name.upper()}_REQUIRED", size == 0)
        yield Broken(name, f"{name.upper()}_TOO_LONG", size > limit)
    trace_id = rows.field("trace_id")
    if sizes(trace_id).any():
        good = pc.match_substring_regex(trace_id, _TRACE_ID).to_numpy(zero_copy_only=False)
        yield Broken("trace_id", "TRACE_ID_MALFORMED", ~good)


def _time_rules(rows: pa.StructArray, window: CaptureWindow) -> Iterator[Broken]:
    captured = rows.field("captured_at")
    yield Broken("captured_at", "CAPTURED_AT_REQUIRED", absent(captured))
    times = _filled(captured)
    early = times < window.earliest
    yield Broken("captured_at", "CAPTURED_AT_TOO_EARLY", early)
    late = times > window.latest
    yield Broken("captured_at", "CAPTURED_AT_IN_FUTURE", late)
    yield Broken(
        "inference_time", "INFERENCE_TIME_NEGATIVE", _filled(rows.field("inference_time")) < 0
    )


def _detection_rules(detections: pa.StructArray) -> Iterator[Broken]:
    yield Broken("class_id", "CLASS_ID_NEGATIVE", numbers(detections, "class_id") < 0)
    size = sizes(detections.field("class_name"))
    yield Broken("class_name", "CLASS_NAME_TOO_LONG", size > MAX_CLASS_NAME_BYTES)
    confidence = numbers(detections, "confidence")
    # Not written as "< 0 or > 1": NaN must not pass.
    ok = (confidence >= 0) & (confidence <= 1)
    yield Broken("confidence", "CONFIDENCE_OUT_OF_RANGE", ~ok)
    yield from _box_rules(detections.field("box"))


def _box_rules(boxes: pa.StructArray) -> Iterator[Broken]:
    present = ~absent(boxes)
    edges = {name: numbers(boxes, name) for name in ("x_min", "y_min", "x_max", "y_max")}
    for name, edge in edges.items():
        yield Broken(f"box.{name}", "BOX_NOT_FINITE", present & ~np.isfinite(edge))
    for name in ("x_min", "y_min"):
        yield Broken(f"box.{name}", "BOX_NEGATIVE", present & (edges[name] < 0))
    for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
        yield Broken(f"box.{high}", "BOX_INSIDE_OUT", present & (edges[high] < edges[low]))


def _label_rules(labels: pa.MapArray) -> Iterator[Broken]:
    yield Broken("labels", "LABEL_KEY_TOO_LONG", sizes(labels.keys) > MAX_LABEL_BYTES)
    yield Broken("labels", "LABEL_VALUE_TOO_LONG", sizes(labels.items) > MAX_LABEL_BYTES)


def _filled(times: pa.Array) -> NumberArray:
    """Return times or durations as integers in their unit, with a valid value for absent ones."""
    valid = to_us(EARLIEST_CAPTURE)
    numbers: NumberArray = times.view(pa.int64()).fill_null(valid).to_numpy(zero_copy_only=False)
    return numbers
