"""Broken rules over columns, and the paths of the fields that break them.

Pure. Arrow arrays are checked as a whole: Python objects are created only for broken rules.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

REASONS = (
    "IMAGE_ID_REQUIRED",
    "IMAGE_ID_TOO_LONG",
    "MODEL_NAME_REQUIRED",
    "MODEL_NAME_TOO_LONG",
    "MODEL_VERSION_TOO_LONG",
    "IMAGE_WIDTH_OUT_OF_RANGE",
    "IMAGE_HEIGHT_OUT_OF_RANGE",
    "SOURCE_REQUIRED",
    "SOURCE_UNKNOWN",
    "CLOUD_REASON_UNKNOWN",
    "CAPTURED_AT_REQUIRED",
    "CAPTURED_AT_TOO_EARLY",
    "CAPTURED_AT_IN_FUTURE",
    "INFERENCE_TIME_NEGATIVE",
    "TOO_MANY_DETECTIONS",
    "TOO_MANY_LABELS",
    "CLASS_ID_NEGATIVE",
    "CLASS_NAME_TOO_LONG",
    "CONFIDENCE_OUT_OF_RANGE",
    "BOX_NOT_FINITE",
    "BOX_NEGATIVE",
    "BOX_INSIDE_OUT",
    "ROTATED_BOX_NOT_FINITE",
    "ROTATED_BOX_NEGATIVE",
    "ROTATED_BOX_ANGLE_OUT_OF_RANGE",
    "TOO_MANY_KEYPOINTS",
    "KEYPOINT_NOT_FINITE",
    "KEYPOINT_CONFIDENCE_OUT_OF_RANGE",
    "MASK_EMPTY",
    "MASK_AMBIGUOUS",
    "MASK_WIDTH_OUT_OF_RANGE",
    "MASK_HEIGHT_OUT_OF_RANGE",
    "MASK_RLE_TOO_LONG",
    "MASK_RLE_MALFORMED",
    "MASK_RLE_WRONG_SUM",
    "TOO_MANY_POLYGONS",
    "TOO_MANY_POINTS",
    "POLYGON_POINTS_UNPAIRED",
    "POLYGON_TOO_FEW_POINTS",
    "POLYGON_NOT_FINITE",
    "LABEL_KEY_TOO_LONG",
    "LABEL_VALUE_TOO_LONG",
    "TRACE_ID_MALFORMED",
)
"""Names of the rules: every reason of a `Violation`."""

BoolArray: TypeAlias = NDArray[np.bool_]
NumberArray: TypeAlias = NDArray[Any]


class Violation(NamedTuple):
    """The first rule that a prediction breaks."""

    field: str
    """Path of the field, such as `detections[3].confidence`."""
    reason: str
    """The rule, such as `CONFIDENCE_OUT_OF_RANGE`."""


class Broken(NamedTuple):
    """The items that break one rule."""

    field: str
    """Path of the field within an item; empty: the item itself."""
    reason: str
    mask: BoolArray
    """Per item: True if it breaks the rule."""


class ListLevel(NamedTuple):
    """Lists of items, one list in each item of the level above or in each prediction."""

    field: str
    """Path of the list; empty: paths do not name it."""
    offsets: NumberArray


def add_violations(
    violations: dict[int, Violation], rule: Broken, levels: Sequence[ListLevel]
) -> None:
    """Add a violation for the first item of each prediction that breaks a rule.

    A prediction that has a violation already keeps it.

    Args:
        violations: by row of the predictions.
        rule: over the items of the last level.
        levels: from the predictions inwards; empty: the rule is over the predictions.
    """
    items = np.flatnonzero(rule.mask)
    if not len(items):
        return
    owners = [items]
    for level in reversed(levels):
        owners.append(np.searchsorted(level.offsets, owners[-1], side="right") - 1)
    rows, first = np.unique(owners[-1], return_index=True)
    for row, at in zip(rows, first, strict=True):
        path = [int(owner[at]) for owner in reversed(owners)]
        field = _path(rule.field, levels, path)
        violations.setdefault(int(row), Violation(field, rule.reason))


def _path(field: str, levels: Sequence[ListLevel], path: Sequence[int]) -> str:
    """Return the path of a field in the item at the end of a path of indexes."""
    parts = [
        f"{level.field}[{item - level.offsets[owner]}]"
        for level, owner, item in zip(levels, path, path[1:], strict=False)
        if level.field
    ]
    return ".".join((*parts, field) if field else parts)


def numbers(rows: pa.StructArray, name: str) -> NumberArray:
    """Return the numbers of a field; NaN where they are absent."""
    values: NumberArray = rows.field(name).to_numpy(zero_copy_only=False)
    return values


def outside(rows: pa.StructArray, name: str, low: int, high: int) -> BoolArray:
    """Return True where a field is not in low to high."""
    values = numbers(rows, name)
    return (values < low) | (values > high)


def sizes(texts: pa.StringArray) -> NumberArray:
    """Return the lengths in bytes of UTF-8."""
    lengths: NumberArray = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    return lengths


def absent(values: pa.Array) -> BoolArray:
    """Return True where values are absent."""
    missing: BoolArray = values.is_null().to_numpy(zero_copy_only=False)
    return missing
