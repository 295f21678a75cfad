"""Statistics from DuckDB: from the rollups of whole blocks, and from the rows of the rest.

A block is read row by row if its rollups cannot answer the query: if the filter has classes or a
confidence, or if its times match only a part of a rollup.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ingest_service.store.duckdb.filters import where, where_cut, where_sums
from ingest_service.store.duckdb.rollup_sql import BUCKET_RATIO, SUMMARY, ZERO_BUCKET
from ingest_service.store.duckdb.unfiltered_stats import MAX_KEYS, Kinds, RunQuery, read_totals
from ingest_service.store.protocol import Count, Filter, Stats

MAX_RANGES = 8
"""Maximum number of ranges that are read row by row: the closest ranges are joined."""
QUANTILES = (0.5, 0.95, 0.99)

Range = tuple[int, int]
"""Commits with after < received_at <= through, us since 1970."""

_SEALED = "SELECT epoch_us(max(through)) FROM blocks"
_BY_ROWS = """
    SELECT epoch_us(after), epoch_us(through)
    FROM blocks SEMI JOIN (SELECT through FROM rollups WHERE {where}) USING (through)
    ORDER BY through
"""
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


class _Plan(NamedTuple):
    """The commits to read row by row; all others are read from rollups."""

    ranges: Sequence[Range]
    newer_than: int | None
    """The last block's end, us; None: there is no block."""
    sums: bool
    """True if rollups are read at all."""


def read_stats(run: RunQuery, filter_: Filter) -> Stats:
    """Return the statistics of the matching predictions; all queries must see one snapshot."""
    plan = _plan(run, filter_)
    rows, values = where(filter_)
    by_rows = f"{rows} AND {_in_rows(plan)}"
    summary = SUMMARY.format(where=by_rows)
    if filter_ == Filter() and plan.newer_than is not None:
        kinds = read_totals(run, plan.newer_than)
    else:
        kinds = _read_parts(
            run, _PARTS.format(sums=_in_sums(filter_, plan), summary=summary), values
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


def _plan(run: RunQuery, filter_: Filter) -> _Plan:
    ((sealed,),) = run(_SEALED, {})
    in_rows_only = bool(filter_.class_names) or filter_.min_confidence is not None
    if sealed is None or (
        filter_.start_time is None and filter_.end_time is None and not in_rows_only
    ):
        return _Plan((), sealed, sealed is not None)
    may, values = where_sums(filter_)
    condition = may if in_rows_only else f"{may} AND ({where_cut(filter_)})"
    blocks = run(_BY_ROWS.format(where=condition), values)
    return _Plan(join_ranges(blocks), sealed, not in_rows_only)


def join_ranges(blocks: Iterable[Range], limit: int = MAX_RANGES) -> list[Range]:
    """Return at most `limit` ranges that cover the blocks, which are in order of time."""
    ranges: list[Range] = []
    for after, through in blocks:
        if ranges and ranges[-1][1] == after:
            ranges[-1] = (ranges[-1][0], through)
        else:
            ranges.append((after, through))
    gaps = sorted(after - before for (_, before), (after, _) in itertools.pairwise(ranges))
    widest = gaps[-(limit - 1)] if len(ranges) > limit else 0
    joined: list[Range] = []
    for after, through in ranges:
        if joined and after - joined[-1][1] < widest:
            joined[-1] = (joined[-1][0], through)
        else:
            joined.append((after, through))
    return joined


def _in_rows(plan: _Plan) -> str:
    newest = (
        "true" if plan.newer_than is None else f"received_at > make_timestamptz({plan.newer_than})"
    )
    return _any_of([newest, *(within("received_at", commits) for commits in plan.ranges)])


def _in_sums(filter_: Filter, plan: _Plan) -> str:
    if not plan.sums:
        return "false"
    condition, _ = where_sums(filter_)
    if not plan.ranges:
        return condition
    return f"{condition} AND NOT {_any_of([within('through', commits) for commits in plan.ranges])}"


def within(column: str, commits: Range) -> str:
    """Return the condition that a time is in this range of commits."""
    after, through = commits
    return f"({column} > make_timestamptz({after}) AND {column} <= make_timestamptz({through}))"


def _any_of(conditions: Sequence[str]) -> str:
    return f"({' OR '.join(conditions)})"


def _counts(rows: Iterable[Sequence[Any]]) -> list[Count]:
    counts = [Count(row[0], int(row[1]), int(row[2])) for row in rows]
    return sorted(counts, key=lambda count: (-count.total, count.key))[:MAX_KEYS]


def _quantiles(
    run: RunQuery,
    buckets: Iterable[Sequence[Any]],
    plan: _Plan,
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


def quantile(counts: Sequence[tuple[int, int]], fraction: float) -> float:
    """Return a quantile in s of bucketed times, with an error of at most 1 %.

    Args:
        counts: buckets in ascending order, each with its number of times, >= 1.
        fraction: in [0, 1]; between two times it is interpolated, as by `quantile_cont`.
    """
    place = fraction * (sum(count for _, count in counts) - 1)
    low, high = (_time_at(counts, rank) for rank in (math.floor(place), math.ceil(place)))
    return low + (high - low) * (place - math.floor(place))


def _time_at(counts: Sequence[tuple[int, int]], rank: int) -> float:
    """Return the middle of the bucket that holds the time of this rank, counted from 0."""
    ends = itertools.accumulate(count for _, count in counts)
    bucket = next(bucket for (bucket, _), end in zip(counts, ends, strict=True) if rank < end)
    return 0.0 if bucket == ZERO_BUCKET else float(BUCKET_RATIO ** (bucket + 0.5))
