"""Queries for the devices of the fleet, from sums and from the rows that have none yet.

Predictions of a time of commits come from the rollups of the blocks within it, and from the rows of
the blocks that its ends cut: at most an hour each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ingest_service.store.duckdb.filters import as_names, names_in
from ingest_service.store.duckdb.last_streams import as_stream
from ingest_service.store.duckdb.losses import of_devices
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.record_types import DeviceRecord, FleetQuery, Place
from ingest_service.store.retention_clock import to_us

HOURS = 24
_HOUR_US = 3600 * 10**6
_PAGE = """
    SELECT device_id, epoch_us(max(updated_at) FILTER (WHERE committed_through > 0))
    FROM watermarks WHERE {where} GROUP BY device_id ORDER BY device_id LIMIT $size
"""
_SEALED = "SELECT epoch_us(max(through)) FROM blocks"
_NAMED = f"device_id IN {names_in('device_ids')}"
_STORED = f"""
    SELECT device_id, sum(predictions)::BIGINT, sum(defects)::BIGINT
    FROM (
        SELECT name AS device_id, total AS predictions, defects FROM totals
        WHERE kind = 'device_id' AND name IN {names_in("device_ids")}
        UNION ALL
        SELECT device_id, count(*), count(*) FILTER (WHERE defect_detected)
        FROM predictions WHERE {{newer}} AND {_NAMED} GROUP BY device_id
    )
    GROUP BY device_id
"""
_REJECTED = f"""
    SELECT device_id, count(*) FROM rejected_predictions WHERE {_NAMED} GROUP BY device_id
"""
_GAPS = f"""
    SELECT device_id,
        least(sum(last_sequence::HUGEINT - first_sequence + 1), 9223372036854775807)::BIGINT
    FROM gaps WHERE {_NAMED} GROUP BY device_id
"""
_BY_HOUR = f"""
    SELECT device_id, hour, sum(predictions)::BIGINT
    FROM (
        SELECT device_id, epoch_us(captured_hour) // {_HOUR_US} AS hour, predictions FROM rollups
        WHERE captured_hour >= make_timestamptz({{first}})
            AND captured_hour < make_timestamptz({{end}}) AND {_NAMED}
        UNION ALL
        SELECT device_id, epoch_us(captured_at) // {_HOUR_US} AS hour, count(*) FROM predictions
        WHERE {{newer}} AND captured_at >= make_timestamptz({{first}})
            AND captured_at < make_timestamptz({{end}}) AND {_NAMED}
        GROUP BY ALL
    )
    GROUP BY ALL
"""
_BLOCKS = """
    SELECT epoch_us(after), epoch_us(through) FROM blocks
    WHERE through > make_timestamptz({after}) ORDER BY through
"""
_WITHIN = "{column} > make_timestamptz({after}) AND {column} <= make_timestamptz({through})"
_COMMITTED = f"""
    SELECT device_id, sum(predictions)::BIGINT
    FROM (
        SELECT device_id, predictions FROM rollups WHERE {{blocks}} AND {_NAMED}
        UNION ALL
        SELECT device_id, count(*) FROM predictions WHERE ({{rows}}) AND {_NAMED}
        GROUP BY device_id
    )
    GROUP BY device_id
"""
_STREAMS = f"""
    SELECT device_id, epoch_us(opened_at), clock_offset_seconds, client, account::VARCHAR
    FROM devices WHERE {_NAMED}
"""
_END = 2**62
"""A time later than every commit, us since 1970: `make_timestamptz` accepts it."""

_Range = tuple[int, int]


def read_devices(
    run: RunQuery,
    query: FleetQuery,
    size: int,
    after: Place | None,
    waiting: Mapping[str, Any],
) -> list[DeviceRecord]:
    """Return at most `size` devices in the order of their ids; all queries see one snapshot.

    Args:
        run: runs the queries.
        query: the devices, and the time of their rates.
        size: >= 1.
        after: its device is the last one of the page before; None: the first page.
        waiting: rows of `LastStreams.waiting`, as of before the snapshot.
    """
    where, values = of_devices(query.device_ids)
    if after is not None:
        where, values["after"] = f"{where} AND device_id > $after", after[1]
    last: dict[str, int | None] = dict(run(_PAGE.format(where=where), {**values, "size": size}))
    if not last:
        return []
    names = {"device_ids": as_names(last)}
    ((sealed,),) = run(_SEALED, {})
    newer = "true" if sealed is None else f"received_at > make_timestamptz({sealed})"
    now, window = to_us(query.now), round(query.window.total_seconds() * 1e6)
    counts = run(_STORED.format(newer=newer), names)
    stored: dict[str, tuple[int, int]] = {name: (all_, bad) for name, all_, bad in counts}
    rejected: dict[str, int] = dict(run(_REJECTED, names))
    gaps: dict[str, int] = dict(run(_GAPS, names))
    # Open-ended: after the clock was set back, commits are ahead of it.
    current = _committed(run, (now - window, _END), names)
    before = _committed(run, (now - 2 * window, now - window), names)
    hours = _by_hour(run, now, newer, names)
    streams = {row[0]: as_stream(row[1:]) for row in run(_STREAMS, names)}
    streams |= {name: as_stream(waiting[name]) for name in last if name in waiting}
    return [
        DeviceRecord(
            name,
            last[name],
            current.get(name, 0),
            before.get(name, 0),
            streams.get(name),
            *stored.get(name, (0, 0)),
            rejected.get(name, 0),
            gaps.get(name, 0),
            [hours.get((name, hour), 0) for hour in _last_hours(now)],
        )
        for name in last
    ]


def _last_hours(now_us: int) -> range:
    """Return the last hours up to the present one, in hours since 1970."""
    present = now_us // _HOUR_US
    return range(present - HOURS + 1, present + 1)


def _by_hour(
    run: RunQuery, now_us: int, newer: str, names: Mapping[str, Any]
) -> dict[tuple[str, int], int]:
    hours = _last_hours(now_us)
    query = _BY_HOUR.format(first=hours[0] * _HOUR_US, end=(hours[-1] + 1) * _HOUR_US, newer=newer)
    return {(name, hour): count for name, hour, count in run(query, names)}


def _committed(run: RunQuery, commits: _Range, names: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of predictions by device in a range of commits, us since 1970."""
    blocks = run(_BLOCKS.format(after=commits[0]), {})
    whole, ranges = split(commits, blocks)
    query = _COMMITTED.format(
        blocks="false" if whole is None else _within("through", whole),
        rows=" OR ".join(f"({_within('received_at', part)})" for part in ranges) or "false",
    )
    return dict(run(query, names))


def split(commits: _Range, blocks: Sequence[_Range]) -> tuple[_Range | None, Sequence[_Range]]:
    """Return the blocks within a range of commits as one range, and the rest of it.

    Args:
        commits: after < received_at <= through, us since 1970.
        blocks: those that end in the range or later, oldest first, without holes.
    """
    after, through = commits
    inside = [block for block in blocks if block[0] >= after and block[1] <= through]
    if not inside:
        return None, [commits]
    whole = (inside[0][0], inside[-1][1])
    rest = [(after, whole[0]), (whole[1], through)]
    return whole, [part for part in rest if part[0] < part[1]]


def _within(column: str, commits: _Range) -> str:
    return _WITHIN.format(column=column, after=commits[0], through=commits[1])
