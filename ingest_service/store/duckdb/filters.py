"""From a filter to SQL, its values always as parameters."""

from collections.abc import Iterable, Sequence
from typing import Any

from ingest_service.store.protocol import Filter

_Condition = tuple[str, str, Any]
"""SQL, the parameter in it, and its value: None or an empty list where nothing is asked."""


def where(which: Filter) -> tuple[str, dict[str, Any]]:
    """Return the condition for a WHERE clause on `predictions`, and its named parameters.

    A filter by device alone also fits the tables of rejected predictions and of gaps.
    """
    given = _given(
        *_of_keys(which),
        ("captured_at >= $start_time", "start_time", which.start_time),
        ("captured_at < $end_time", "end_time", which.end_time),
    )
    detection = _given(
        ("list_contains($class_names, d.class_name)", "class_names", list(which.class_names)),
        ("d.confidence >= $min_confidence", "min_confidence", which.min_confidence),
    )
    clauses = [sql for sql, _, _ in given]
    if detection:
        all_of = " AND ".join(sql for sql, _, _ in detection)
        clauses.append(f"len(list_filter(detections, lambda d: {all_of})) > 0")
    values = {name: value for _, name, value in (*given, *detection)}
    return _all_of(clauses), values


def where_sums(which: Filter) -> tuple[str, dict[str, Any]]:
    """Return the condition for the rows of `rollups` that may count what matches.

    A row that does not meet it counts nothing that matches; confidences are not in rollups.
    """
    given = _given(
        *_of_keys(which),
        ("last_captured_at >= $start_time", "start_time", which.start_time),
        ("first_captured_at < $end_time", "end_time", which.end_time),
        (
            "len(list_filter(classes, lambda c: list_contains($class_names, c.class_name))) > 0",
            "class_names",
            list(which.class_names),
        ),
    )
    return _all_of(sql for sql, _, _ in given), {name: value for _, name, value in given}


def where_cut(which: Filter) -> str:
    """Return the condition for rows of `rollups` of which the filter's times cut off a part.

    It holds for rows that meet `where_sums`, with its parameters.
    """
    given = _given(
        ("first_captured_at < $start_time", "start_time", which.start_time),
        ("last_captured_at >= $end_time", "end_time", which.end_time),
    )
    return " OR ".join(sql for sql, _, _ in given) or "false"


def _of_keys(which: Filter) -> Sequence[_Condition]:
    """Return the conditions on columns that `predictions` and `rollups` both have."""
    return (
        ("list_contains($device_ids, device_id)", "device_ids", list(which.device_ids)),
        ("list_contains($model_names, model_name)", "model_names", list(which.model_names)),
        ("defect_detected = $defect_detected", "defect_detected", which.defect_detected),
        ("source = $source", "source", which.source),
    )


def _all_of(clauses: Iterable[str]) -> str:
    return " AND ".join(clauses) or "true"


def _given(*conditions: _Condition) -> Sequence[_Condition]:
    return [condition for condition in conditions if condition[2] not in (None, [])]
