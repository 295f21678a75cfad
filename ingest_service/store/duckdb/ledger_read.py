"""The ledger from sums: what the view `ledger` counts, without reading the rows of predictions.

The view stays the audit: it counts every row. Here the predictions of a spool come from the table
`spool_sums`, and only rows that are newer than the last block are counted.
"""

from collections.abc import Sequence
from typing import Any, Final

from ingest_service.store.duckdb.filters import as_names
from ingest_service.store.duckdb.losses import of_devices
from ingest_service.store.duckdb.unfiltered_stats import RunQuery
from ingest_service.store.record_types import LedgerRecord, Place, ReasonCount

MAX_REASONS = 50
"""Maximum number of reasons in an account: a device may declare gaps with any number."""
_MOST: Final = 2**63 - 1
_SEALED = "SELECT epoch_us(max(through)) FROM blocks"
_SUMS = ("accepted", "rejected", "gap_sequences", "committed_through", "duplicates", "expired")
_BALANCED = "sum(accepted) + sum(rejected) + sum(gap_sequences) = sum(committed_through)"
_SPOOLS = f"""
    WITH parts AS (
        SELECT device_id, spool_id, predictions AS accepted, 0 AS rejected, 0 AS gap_sequences,
            0 AS committed_through, 0 AS duplicates, 0 AS expired, NULL AS updated_at
        FROM spool_sums WHERE {{devices}}
        UNION ALL
        SELECT device_id, spool_id, count(*), 0, 0, 0, 0, 0, NULL
        FROM predictions WHERE {{newer}} AND {{devices}} GROUP BY ALL
        UNION ALL
        SELECT device_id, spool_id, 0, count(*), 0, 0, 0, 0, NULL
        FROM rejected_predictions WHERE {{devices}} GROUP BY ALL
        UNION ALL
        SELECT device_id, spool_id, 0, 0, sum(last_sequence::HUGEINT - first_sequence + 1), 0, 0, 0,
            NULL
        FROM gaps WHERE {{devices}} GROUP BY ALL
        UNION ALL
        SELECT device_id, spool_id, 0, rejected, 0, 0, 0, predictions, NULL
        FROM expired WHERE {{devices}}
        UNION ALL
        SELECT device_id, spool_id, 0, 0, 0, committed_through, duplicates, 0, updated_at
        FROM watermarks WHERE {{devices}}
    ), spools AS MATERIALIZED (
        SELECT device_id, spool_id, {", ".join(f"sum({name}) AS {name}" for name in _SUMS)},
            {_BALANCED} AS balanced, max(updated_at) AS updated_at
        FROM parts GROUP BY device_id, spool_id
    ), paged AS (
        SELECT * FROM spools WHERE {{after}}
        ORDER BY updated_at DESC, device_id DESC, spool_id DESC LIMIT $size
    )
    SELECT device_id, spool_id, {", ".join(f"least({name}, {_MOST})::BIGINT" for name in _SUMS)},
        balanced, epoch_us(updated_at)
    FROM (
        SELECT 1 AS part, * FROM paged
        UNION ALL
        SELECT 2, '', '', {", ".join(f"coalesce(sum({name}), 0)" for name in _SUMS)},
            coalesce(bool_and(balanced), true), NULL
        FROM spools
    )
    ORDER BY part, updated_at DESC, device_id DESC, spool_id DESC
"""
_AFTER = """
    (updated_at, device_id, spool_id) < (make_timestamptz($after_us), $after_device, $after_spool)
"""
_PAGED = """
    (
        SELECT unnest($devices::JSON::VARCHAR[]) AS device_id,
            unnest($spools::JSON::VARCHAR[]) AS spool_id
    )
"""
_COUNTED = f"""
    SELECT device_id, spool_id, reason, least({{count}}, {_MOST})::BIGINT AS total
    FROM {{table}} SEMI JOIN {_PAGED} USING (device_id, spool_id)
    GROUP BY device_id, spool_id, reason
    QUALIFY row_number() OVER (PARTITION BY device_id, spool_id ORDER BY total DESC, reason)
        <= {MAX_REASONS}
    ORDER BY total DESC, reason
"""
_ALL_COUNTED = f"""
    SELECT '', '', reason, least({{count}}, {_MOST})::BIGINT AS total
    FROM {{table}} WHERE {{devices}} GROUP BY ALL ORDER BY total DESC, reason
    LIMIT {MAX_REASONS}
"""
_REASONS = (
    {"table": "gaps", "count": "sum(last_sequence::HUGEINT - first_sequence + 1)"},
    {"table": "rejected_predictions", "count": "count(*)"},
)


def read_ledger(
    run: RunQuery, device_ids: Sequence[str], size: int, after: Place | None
) -> tuple[Sequence[LedgerRecord], LedgerRecord]:
    """Return the accounts of at most `size` spools, and of all; all queries see one snapshot."""
    ((sealed,),) = run(_SEALED, {})
    devices, values = of_devices(device_ids)
    newer = "true" if sealed is None else f"received_at > make_timestamptz({sealed})"
    query = _SPOOLS.format(devices=devices, newer=newer, after=_AFTER if after else "true")
    place = {}
    if after is not None:
        place = dict(zip(("after_us", "after_device", "after_spool"), after, strict=False))
    *rows, total = run(query, {**values, **place, "size": size})
    keys = {"devices": as_names(row[0] for row in rows), "spools": as_names(row[1] for row in rows)}
    of_spools = [_by_spool(run(_COUNTED.format(**kind), keys)) for kind in _REASONS]
    of_all = [
        _by_spool(run(_ALL_COUNTED.format(**kind, devices=devices), values)) for kind in _REASONS
    ]
    return [_record(row, of_spools) for row in rows], _record(total, of_all)


_Reasons = dict[tuple[str, str], list[ReasonCount]]


def _by_spool(rows: Sequence[tuple[Any, ...]]) -> _Reasons:
    reasons: _Reasons = {}
    for device, spool, reason, count in rows:
        reasons.setdefault((device, spool), []).append(ReasonCount(reason, count))
    return reasons


def _record(row: tuple[Any, ...], reasons: Sequence[_Reasons]) -> LedgerRecord:
    gaps, rejected = (of_kind.get((row[0], row[1]), ()) for of_kind in reasons)
    return LedgerRecord(*(*row, gaps, rejected))
