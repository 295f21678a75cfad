"""Detections by confidence, now and in a reference, from DuckDB."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ingest_service.store.duckdb.figures_sql import Keys, confidences, source_of
from ingest_service.store.duckdb.read_plan import make_plan
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.figures import (
    CONFIDENCE_BINS,
    MAX_CONFIDENCE_CLASSES,
    Bins,
    ConfidenceCounts,
    Confidences,
    Hours,
)
from ingest_service.store.protocol import Filter

_NOW, _BEFORE = 0, 1
_COUNTED = f"""
    WITH counted AS MATERIALIZED (
        SELECT side, class_name, bin, sum(n)::BIGINT AS n FROM ({{confidences}})
        WHERE {{chosen}} GROUP BY ALL
    ), largest AS (
        SELECT class_name, row_number() OVER (
            ORDER BY coalesce(sum(n) FILTER (WHERE side = {_NOW}), 0) DESC, sum(n) DESC, class_name
        ) AS place
        FROM counted GROUP BY class_name
    )
    SELECT place, class_name, side, bin, n FROM counted JOIN largest USING (class_name)
    WHERE place <= {MAX_CONFIDENCE_CLASSES}
    UNION ALL
    SELECT 0, NULL, side, bin, sum(n)::BIGINT FROM counted GROUP BY side, bin
    ORDER BY 1
"""


def read_confidences(run: RunQuery, filter_: Filter, reference: Hours) -> Confidences:
    """Return detections by confidence; all queries must see one snapshot.

    Args:
        run: runs the queries.
        filter_: the predictions of now, between whole hours; its classes choose those of the result
            and no predictions.
        reference: the hours to compare with.
    """
    everyone = replace(filter_, class_names=())
    before = replace(everyone, start_time=reference.start, end_time=reference.end)
    parts, values = [], {"classes": list(filter_.class_names)}
    for side, chosen in ((_NOW, everyone), (_BEFORE, before)):
        source = source_of(chosen, make_plan(run, chosen, confidences=True))
        keys = Keys("side", f"{side} AS side", f"{side} AS side")
        query = confidences(source, keys, by_class=True)
        # The times of the two sides have parameters of their own.
        for name in ("start_time", "end_time"):
            query = query.replace(f"${name}", f"${name}_{side}")
            values[f"{name}_{side}"] = source.values[name]
        values |= {n: v for n, v in source.values.items() if n not in ("start_time", "end_time")}
        parts.append(query)
    chosen_classes = "list_contains($classes, class_name)" if filter_.class_names else "true"
    if not filter_.class_names:
        del values["classes"]
    query = _COUNTED.format(confidences=" UNION ALL ".join(parts), chosen=chosen_classes)
    return _confidences(run(query, values))


def _confidences(rows: Iterable[tuple[Any, ...]]) -> Confidences:
    sides: defaultdict[str | None, tuple[list[int], list[int]]] = defaultdict(
        lambda: ([0] * CONFIDENCE_BINS, [0] * CONFIDENCE_BINS)
    )
    for _, name, side, number, count in rows:
        sides[name][side][number] = count
    everything = ConfidenceCounts(*map(_bins, sides.pop(None, ((), ()))))
    by_class = {name or "": ConfidenceCounts(*map(_bins, both)) for name, both in sides.items()}
    return Confidences(everything, by_class)


def _bins(counts: Iterable[int]) -> Bins:
    return tuple(counts) or (0,) * CONFIDENCE_BINS
