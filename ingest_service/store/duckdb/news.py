"""Reading of what was committed after a position, for those who follow the log."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ingest_service.store.duckdb.filters import where
from ingest_service.store.protocol import Filter, News, Position

STEP_ROWS = 250_000
"""Approximate number of predictions that one answer covers: a reader that was away for long takes
several, and may be interrupted between them."""
_BEGINNING = -(2**62)
"""A time before every commit, us since 1970; DuckDB's own begin later."""

_SEALED = """
    SELECT epoch_us((SELECT max(through) FROM blocks)), epoch_us((SELECT max(through) FROM exports))
"""
_NEWEST_ROW = """
    SELECT epoch_us(max(received_at)), epoch_us(min(received_at))
    FROM predictions WHERE received_at > make_timestamptz($sealed_us)
"""
_BLOCKS_AHEAD = """
    SELECT epoch_us(through), sum(predictions) OVER (ORDER BY through) - predictions AS before
    FROM blocks WHERE through > make_timestamptz($after_us) ORDER BY through
"""
_DELETED = """
    SELECT
        (SELECT coalesce(sum(predictions) > 0, false) FROM expired),
        (SELECT epoch_us(min(after)) FROM blocks),
        (SELECT epoch_us(max(updated_at)) FROM watermarks)
"""
_AHEAD = """
    received_at >= make_timestamptz($after_us) AND received_at < make_timestamptz($upto_us)
    AND (received_at, device_id, spool_id, sequence)
        > (make_timestamptz($after_us), $after_device, $after_spool, $after_sequence)
"""
# Sorting rows costs most: so only those of the last commits and devices are sorted.
_COUNT = """
    WITH counts AS MATERIALIZED (
        SELECT received_at, device_id, count(*) AS rows FROM predictions WHERE {where} GROUP BY ALL
    ), upto AS (
        SELECT received_at, device_id,
            sum(rows) OVER (ORDER BY received_at DESC, device_id DESC) AS rows
        FROM counts
    ), cut AS (
        SELECT received_at, device_id FROM upto WHERE rows >= $keep
        ORDER BY received_at DESC, device_id DESC LIMIT 1
    )
    SELECT (SELECT sum(rows)::BIGINT FROM counts), epoch_us((SELECT received_at FROM cut)),
        (SELECT device_id FROM cut)
"""
_NEWEST = """
    SELECT epoch_us(received_at), device_id, spool_id, sequence FROM predictions
    WHERE {where} AND received_at >= make_timestamptz($cut_us)
        AND (received_at > make_timestamptz($cut_us) OR device_id >= $cut_device)
    ORDER BY received_at DESC, device_id DESC, spool_id DESC, sequence DESC LIMIT $keep
"""

# The ranges leave out most rows, before the keys of the others are built and compared.
_AT = """
    received_at <= make_timestamptz($newest_us)
    AND sequence BETWEEN $first_sequence AND $last_sequence
    AND device_id BETWEEN $first_device AND $last_device
    AND list_contains($keys, epoch_us(received_at) || '/' || device_id || '/' || spool_id || '/'
        || sequence)
"""

RunRows = Callable[[str, Mapping[str, Any]], list[tuple[Any, ...]]]
"""Returns the rows of a query with its parameters, all on one snapshot."""


def head(rows: RunRows) -> Position:
    """Return the position of the end of the last commit."""
    ((block, export),) = rows(_SEALED, {})
    sealed = max(block or _BEGINNING, export or _BEGINNING)
    ((last, _),) = rows(_NEWEST_ROW, {"sealed_us": sealed})
    return _end(sealed if last is None else last)


def read_news(rows: RunRows, filter_: Filter, after: Position, keep: int) -> News:
    """Return what was committed after a position.

    Args:
        rows: runs a query.
        filter_: conditions of the predictions.
        after: a position, of a prediction or of the end of a commit.
        keep: maximum number of positions in the result, >= 0.
    """
    upto, more = max(head(rows), after), False
    blocks = rows(_BLOCKS_AHEAD, {"after_us": after.received_us})
    covered = [through for through, before in blocks if before < STEP_ROWS]
    if len(covered) < len(blocks):
        upto, more = _end(covered[-1]), True
    if upto == after:
        return News(after, 0, [], more=False)
    condition, values = where(filter_)
    condition = f"{condition} AND {_AHEAD}"
    values |= {
        "after_us": after.received_us,
        "after_device": after.device_id,
        "after_spool": after.spool_id,
        "after_sequence": after.sequence,
        "upto_us": upto.received_us,
    }
    values["keep"] = keep
    ((matching, cut_us, cut_device),) = rows(_COUNT.format(where=condition), values)
    newest: list[tuple[Any, ...]] = []
    if matching and keep:
        # Without a cut there are fewer than `keep`.
        values |= {"cut_us": cut_us or after.received_us, "cut_device": cut_device or ""}
        newest = rows(_NEWEST.format(where=condition), values)
    return News(upto, matching or 0, [Position(*row) for row in reversed(newest)], more)


def at_positions(positions: Sequence[Position]) -> tuple[str, dict[str, Any]]:
    """Return the condition for the rows at these positions, and its parameters.

    Args:
        positions: at least one, oldest first.
    """
    sequences = [position.sequence for position in positions]
    devices = [position.device_id for position in positions]
    # Neither the time, nor a spool's id, nor a sequence has a slash.
    keys = ["/".join(map(str, position)) for position in positions]
    return _AT, {
        "newest_us": positions[-1].received_us,
        "first_sequence": min(sequences),
        "last_sequence": max(sequences),
        "first_device": min(devices),
        "last_device": max(devices),
        "keys": keys,
        "size": len(positions),
    }


def is_deleted_after(rows: RunRows, after: Position) -> bool:
    """Return True if retention may have deleted predictions after a position.

    It deletes whole blocks, the oldest first.
    """
    ((some, first_block, last),) = rows(_DELETED, {})
    if not some:
        return False
    if first_block is not None:
        return after.received_us <= int(first_block)
    # Every block is deleted, and the time of the last one is not kept.
    ((_, first_row),) = rows(_NEWEST_ROW, {"sealed_us": _BEGINNING})
    bound = last if first_row is None else first_row
    return bound is not None and after.received_us < int(bound)


def _end(received_us: int) -> Position:
    """Return the position after all predictions of the commit of this time, and before the next."""
    return Position(received_us + 1, "", "", 0)
