"""The choice between rollups and rows: which commits a query reads row by row.

A block is read row by row if its rollups cannot answer the query: if the filter has classes or a
confidence, if its times match only a part of a rollup, or if the rollups lack what is counted.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from ingest_service.store.duckdb.filters import where_cut, where_sums
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.protocol import Filter

MAX_RANGES = 8
"""Maximum number of ranges that are read row by row: the closest ranges are joined."""

Range: TypeAlias = tuple[int, int]
"""Commits with after < received_at <= through, us since 1970."""

_SEALED = "SELECT epoch_us(max(through)) FROM blocks"
_BY_ROWS = """
    SELECT epoch_us(after), epoch_us(through)
    FROM blocks SEMI JOIN (SELECT through FROM rollups WHERE {where}) USING (through)
    ORDER BY through
"""
_WITHOUT_CONFIDENCES = "through IN (SELECT through FROM blocks WHERE has_confidences IS NOT TRUE)"


class Plan(NamedTuple):
    """The commits to read row by row; all others are read from rollups."""

    ranges: Sequence[Range]
    newer_than: int | None
    """The last block's end, us; None: there is no block, or every row is read."""
    sums: bool
    """True if rollups are read at all."""


BY_ROWS = Plan((), None, False)
"""The plan to read every row that matches."""


def make_plan(run: RunQuery, filter_: Filter, *, confidences: bool = False) -> Plan:
    """Return the plan for a filter.

    Args:
        run: runs the queries.
        filter_: the predictions to count.
        confidences: True: rollups without confidences cannot answer the query.
    """
    sealed = last_block(run)
    if sealed is None:
        return BY_ROWS
    may, values = where_sums(filter_)
    if needs_rows(filter_):
        return Plan(join_ranges(run(_BY_ROWS.format(where=may), values)), sealed, False)
    reasons = [where_cut(filter_), *([_WITHOUT_CONFIDENCES] if confidences else [])]
    if reasons == ["false"]:
        return Plan((), sealed, True)
    condition = f"{may} AND ({' OR '.join(reasons)})"
    return Plan(join_ranges(run(_BY_ROWS.format(where=condition), values)), sealed, True)


def last_block(run: RunQuery) -> int | None:
    """Return the end of the last block, us since 1970; None: there is no block."""
    ((sealed,),) = run(_SEALED, {})
    return None if sealed is None else int(sealed)


def needs_rows(filter_: Filter) -> bool:
    """Return True if no rollup can answer a query with this filter."""
    return bool(filter_.class_names) or filter_.min_confidence is not None


def in_rows(plan: Plan) -> str:
    """Return the condition for the rows of `predictions` to read."""
    newest = (
        "true" if plan.newer_than is None else f"received_at > make_timestamptz({plan.newer_than})"
    )
    return _any_of([newest, *(within("received_at", commits) for commits in plan.ranges)])


def in_sums(filter_: Filter, plan: Plan) -> str:
    """Return the condition for the rows of `rollups` to read."""
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


def _any_of(conditions: Sequence[str]) -> str:
    return f"({' OR '.join(conditions)})"
