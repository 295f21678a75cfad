"""Statistics from DuckDB: from the rollups of whole blocks, and from the rows of the rest.

A block is read row by row if its rollups cannot answer the query: if the filter has classes or a
confidence, or if its times match only a part of a rollup.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ingest_service.store.duckdb.filters import where
from ingest_service.store.duckdb.quantiles import QUANTILES, quantile
from ingest_service.store.duckdb.read_plan import Plan, in_rows, in_sums, make_plan
from ingest_service.store.duckdb.rollup_sql import SUMMARY
from ingest_service.store.duckdb.unfiltered_stats import MAX_KEYS, Kinds, RunQuery, read_totals
from ingest_service.store.protocol import Count, Filter, Stats

_SUMS = "predictions, detections, first_captured_at, last_captured_at, classes, times"
_COUNTED = """
    SELECT '{key}' AS kind, {key} AS name, sum(predictions),
        coalesce(sum(predictions) FILTER (WHERE defect_detected), 0),
        sum(detections), epoch_us(min(first_captured_at)), epoch_us(max(last_captured_at))
    FROM parts GROUP BY {key}
"""
_PARTS = f"""
    WITH parts AS MATERIALIZED (
        SELECT device_id, model_name, source, defect_detected, {_SUMS} FROM rollups WHERE {{sums}}
        UNION ALL
        SELECT device_id, model_name, source, defect_detected, {_SUMS} FROM ({{summary}})
    )
"""
# Separate queries: with some ten thousand rows, DuckDB 1.5.5 hangs if one query unnests both lists
# of `parts`, and an interrupt does not end it.
_ALL = (
    " UNION ALL ".join(_COUNTED.format(key=k) for k in ("device_id", "model_name", "source")),
    """
    SELECT 'class_name', c.class_name, sum(c.detections), 0, 0, NULL, NULL
    FROM (SELECT unnest(classes) AS c FROM parts) GROUP BY c.class_name
    """,
    """
    SELECT 'bucket', t.bucket::VARCHAR, sum(t.predictions), 0, 0, NULL, NULL
    FROM (SELECT unnest(times) AS t FROM parts) GROUP BY t.bucket
    """,
)
_EXACT = f"""
    SELECT quantile_cont(inference_seconds, {list(QUANTILES)}) FROM predictions WHERE {{where}}
"""
_BESIDES = """
    SELECT (SELECT count(*) FROM rejected_predictions WHERE {where}), (
        SELECT least(
            coalesce(sum(last_sequence::HUGEINT - first_sequence + 1), 0), 9223372036854775807
        )::BIGINT
        FROM gaps WHERE {where}
    )
"""


def read_stats(run: RunQuery, filter_: Filter) -> Stats:
    """Return the statistics of the matching predictions; all queries must see one snapshot."""
    plan = make_plan(run, filter_)
    rows, values = where(filter_)
    by_rows = f"{rows} AND {in_rows(plan)}"
    summary = SUMMARY.format(where=by_rows)
    if filter_ == Filter() and plan.newer_than is not None:
        kinds = read_totals(run, plan.newer_than)
    else:
        kinds = _read_parts(
            run, _PARTS.format(sums=in_sums(filter_, plan), summary=summary), values
        )
    sources = kinds.get("source", [])
    devices, device_values = where(Filter(device_ids=filter_.device_ids))
    ((rejected, gap_sequences),) = run(_BESIDES.format(where=devices), device_values)
    return Stats(
        total_predictions=sum(row[1] for row in sources),
        defects_detected=sum(row[2] for row in sources),
        total_detections=sum(row[3] for row in sources),
        by_device=_counts(kinds.get("device_id", ())),
        by_model=_counts(kinds.get("model_name", ())),
        by_source=_counts(sources),
        by_class=_counts(kinds.get("class_name", ())),
        inference_seconds=_quantiles(run, kinds.get("bucket", ()), plan, by_rows, values),
        first_captured_us=min((row[4] for row in sources), default=None),
        last_captured_us=max((row[5] for row in sources), default=None),
        rejected=rejected,
        gap_sequences=gap_sequences,
    )


def _read_parts(run: RunQuery, parts: str, values: Mapping[str, Any]) -> Kinds:
    kinds: Kinds = {}
    for query in _ALL:
        for kind, *row in run(parts + query, values):
            kinds.setdefault(kind, []).append(tuple(row))
    return kinds


def _counts(rows: Iterable[Sequence[Any]]) -> list[Count]:
    counts = [Count(row[0], int(row[1]), int(row[2])) for row in rows]
    return sorted(counts, key=lambda count: (-count.total, count.key))[:MAX_KEYS]


def _quantiles(
    run: RunQuery,
    buckets: Iterable[Sequence[Any]],
    plan: Plan,
    by_rows: str,
    values: Mapping[str, Any],
) -> tuple[float, float, float] | None:
    if not plan.sums:
        ((exact,),) = run(_EXACT.format(where=by_rows), values)
        return tuple(exact) if exact else None
    counts = sorted((int(row[0]), int(row[1])) for row in buckets)
    if not counts:
        return None
    p50, p95, p99 = (quantile(counts, fraction) for fraction in QUANTILES)
    return p50, p95, p99
