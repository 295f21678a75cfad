"""SQL conditions for filters. Values are always passed as parameters."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ingest_service.store.protocol import Filter

_Condition = tuple[str, str, Any]
"""SQL, its parameter, and the parameter's value; None or an empty list: no condition."""


def where(filter_: Filter) -> tuple[str, dict[str, Any]]:
    """Return the condition for a WHERE clause on `predictions`, and its named parameters.

    A filter by device alone also applies to the tables of rejected predictions and of gaps.
    """
    conditions = _set(
        *_of_keys(filter_),
        ("captured_at >= $start_time", "start_time", filter_.start_time),
        ("captured_at < $end_time", "end_time", filter_.end_time),
    )
    detection = _set(
        ("list_contains($class_names, d.class_name)", "class_names", list(filter_.class_names)),
        ("d.confidence >= $min_confidence", "min_confidence", filter_.min_confidence),
    )
    clauses = [sql for sql, _, _ in conditions]
    if detection:
        all_of = " AND ".join(sql for sql, _, _ in detection)
        clauses.append(f"len(list_filter(detections, lambda d: {all_of})) > 0")
    values = {name: value for _, name, value in (*conditions, *detection)}
    return _all_of(clauses), values


def where_sums(filter_: Filter) -> tuple[str, dict[str, Any]]:
    """Return the condition for the rows of `rollups` that may count matching predictions.

    A row that does not meet it counts no matching prediction. Rollups do not have confidences.
    """
    conditions = _set(
        *_of_keys(filter_),
        ("last_captured_at >= $start_time", "start_time", filter_.start_time),
        ("first_captured_at < $end_time", "end_time", filter_.end_time),
        (
            "len(list_filter(classes, lambda c: list_contains($class_names, c.class_name))) > 0",
            "class_names",
            list(filter_.class_names),
        ),
    )
    return _all_of(sql for sql, _, _ in conditions), {name: value for _, name, value in conditions}


def where_cut(filter_: Filter) -> str:
    """Return the condition for rows of `rollups` that the filter's times match only in part.

    It applies to rows that meet `where_sums`, and uses the same parameters.
    """
    conditions = _set(
        ("first_captured_at < $start_time", "start_time", filter_.start_time),
        ("last_captured_at >= $end_time", "end_time", filter_.end_time),
    )
    return " OR ".join(sql for sql, _, _ in conditions) or "false"


def _of_keys(filter_: Filter) -> Sequence[_Condition]:
    """Return the conditions on columns that `predictions` and `rollups` both have."""
    return (
        _one_of("device_id", "device_ids", filter_.device_ids),
        _one_of("model_name", "model_names", filter_.model_names),
        ("defect_detected = $defect_detected", "defect_detected", filter_.defect_detected),
        ("source = $source", "source", filter_.source),
    )


def _one_of(column: str, parameter: str, names: Sequence[str]) -> _Condition:
    return f"{column} IN {names_in(parameter)}", parameter, as_names(names) if names else None


def names_in(parameter: str) -> str:
    """Return the subquery for the names in a parameter, whose value is made by `as_names`.

    It is JSON: to bind a list of a thousand names takes 70 ms of CPU, in each query.
    """
    return f"(SELECT unnest(${parameter}::JSON::VARCHAR[]))"


def as_names(names: Iterable[str]) -> str:
    """Return the value of a parameter of `names_in`."""
    return json.dumps(list(names))


def _all_of(clauses: Iterable[str]) -> str:
    return " AND ".join(clauses) or "true"


def _set(*conditions: _Condition) -> Sequence[_Condition]:
    return [condition for condition in conditions if condition[2] not in (None, [])]
