"""Databases of many rows, filled through the store's own write path."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.ingest import DEVICES, payloads
from ingest_service.receive.decision import decide
from ingest_service.receive.group import Message, prepare
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.protocol import Changes, Filter, SpoolKey, StreamOpening, Watermark

GROUP = 16_384
"""Predictions in one transaction: about what the service commits at full speed."""
_BATCH = 256
_SUM_UP_SECONDS = 0.25


def grow(path: Path, rows: int, *, days: float = 0.0) -> None:
    """Add predictions with three detections each, rollups included, until there are this many.

    Args:
        path: the database.
        rows: number of predictions.
        days: length of the time in which they were captured, up to now, d.
    """
    chance = np.random.default_rng(1)
    sent = payloads(1, GROUP, _BATCH)
    templates = [_template(f"bench-{number}", sent) for number in range(DEVICES)]
    with contextlib.closing(DuckDBStore(path)) as store:
        with contextlib.closing(store.reader()) as reader:
            there = reader.stats(Filter()).total_predictions
        maintenance, due = store.maintenance(), 0.0
        for start in range(there, rows, GROUP):
            turn, number = divmod(start // GROUP, DEVICES)
            earlier = days * (1 - (start + GROUP) / max(rows, start + GROUP))
            changes = _varied(templates[number], chance, turn * GROUP, earlier)
            with store.transaction() as transaction:
                transaction.write_bookkeeping(changes, datetime.now(UTC))
                transaction.write_predictions(changes.predictions, datetime.now(UTC))
            if time.monotonic() > due:
                maintenance.update_rollups(datetime.now(UTC))
                due = time.monotonic() + _SUM_UP_SECONDS


def _template(device: str, sent: Sequence[bytes]) -> Changes:
    """Return what the service would write for one group of messages of a device."""
    spool = SpoolKey(device, "00000000-0000-0000-0000-000000000000")
    opening = StreamOpening(spool, datetime.now(UTC), None, None, "bench")
    messages = [Message(0, opening, payload, first=False) for payload in sent]
    return decide(prepare(messages, PtarsDecoder(), datetime.now(UTC)), {spool: Watermark()})[0]


def _varied(template: Changes, chance: np.random.Generator, after: int, days: float) -> Changes:
    """Return the group as captured days ago, after a sequence, with times around 12 ms."""
    now = int((time.time() - days * 86_400) * 1_000_000)
    columns = {
        "sequence": pa.array(after + 1 + np.arange(GROUP)),
        "captured_at": pa.array(now + np.arange(GROUP)).cast(pa.timestamp("us", "UTC")),
        "inference_seconds": pa.array(chance.lognormal(np.log(0.012), 0.3, GROUP)),
    }
    predictions = template.predictions
    for name, values in columns.items():
        predictions = predictions.set_column(predictions.schema.get_field_index(name), name, values)
    at = template.watermarks.schema.get_field_index("committed_through")
    through = pa.array([after + GROUP], pa.int64())
    watermarks = template.watermarks.set_column(at, "committed_through", through)
    return replace(template, predictions=predictions, watermarks=watermarks)
