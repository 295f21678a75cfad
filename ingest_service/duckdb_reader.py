"""Reads the tables of a store with DuckDB: watermarks, statistics and pages."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import duckdb

from ingest_service.filters import where
from ingest_service.store import Count, Filter, Position, Spool, Stats, StoredPrediction

MAX_KEYS = 1000
"""How many devices, models and classes statistics list at most."""

_PAGE = """
    SELECT epoch_us(received_at), device_id, spool_id, sequence,
        clock_offset_seconds, image_id, image_width, image_height, model_name, model_version,
        source, cloud_reason, epoch_us(captured_at), inference_seconds, detections,
        defect_detected, labels, trace_id
    FROM predictions
    WHERE {where}
    ORDER BY received_at DESC, device_id DESC, spool_id DESC, sequence DESC
    LIMIT $size
"""
_AFTER = """
    received_at <= make_timestamptz($received_us)
    AND (received_at, device_id, spool_id, sequence)
        < (make_timestamptz($received_us), $after_device, $after_spool, $after_sequence)
"""
_TOTALS = """
    SELECT count(*), count(*) FILTER (WHERE defect_detected),
        coalesce(sum(len(detections)), 0)::BIGINT,
        quantile_cont(inference_seconds, [0.5, 0.95, 0.99]),
        epoch_us(min(captured_at)), epoch_us(max(captured_at))
    FROM predictions WHERE {where}
"""
_BY = """
    SELECT {key}, count(*) AS total, count(*) FILTER (WHERE defect_detected)
    FROM predictions WHERE {where}
    GROUP BY {key} ORDER BY total DESC, {key} LIMIT $keys
"""
_BY_CLASS = """
    SELECT class_name, count(*) AS total, 0
    FROM (
        SELECT unnest(list_transform(detections, lambda d: d.class_name)) AS class_name
        FROM predictions WHERE {where}
    )
    GROUP BY class_name ORDER BY total DESC, class_name LIMIT $keys
"""
_REJECTED = "SELECT count(*) FROM rejected_predictions WHERE {where}"
_GAPS = """
    SELECT least(
        coalesce(sum(last_sequence::HUGEINT - first_sequence + 1), 0), 9223372036854775807
    )::BIGINT
    FROM gaps WHERE {where}
"""


class DuckDBReader:
    """A `Reader` on a cursor of its own.

    Args:
        cursor: its connection; closed with it.
        translated: context that turns DuckDB's errors into SightlineErrors.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        translated: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._cursor = cursor
        self._translated = translated
        self._interrupted = threading.Event()

    def watermark(self, spool: Spool) -> int:
        """Returns the committed position of a spool; 0: it is not known."""
        with self._translated():
            found = self._rows(
                "SELECT committed_through FROM watermarks"
                " WHERE device_id = $device_id AND spool_id = $spool_id",
                spool._asdict(),
            )
        return int(found[0][0]) if found else 0

    def stats(self, which: Filter) -> Stats:
        """Returns statistics, all of one moment."""
        with self._translated():
            self._cursor.execute("BEGIN")  # one snapshot for all the queries
            return self._stats(which)

    def _stats(self, which: Filter) -> Stats:
        condition, values = where(which)
        devices, device_values = where(Filter(device_ids=which.device_ids))
        (total, defects, detections, quantiles, first, last) = self._rows(
            _TOTALS.format(where=condition), values
        )[0]
        by = {
            key: self._counts(_BY.format(key=key, where=condition), values)
            for key in ("device_id", "model_name", "source")
        }
        return Stats(
            total_predictions=total,
            defects_detected=defects,
            total_detections=detections,
            by_device=by["device_id"],
            by_model=by["model_name"],
            by_source=by["source"],
            by_class=self._counts(_BY_CLASS.format(where=condition), values),
            inference_seconds=tuple(quantiles) if quantiles else None,
            first_captured_us=first,
            last_captured_us=last,
            rejected=self._rows(_REJECTED.format(where=devices), device_values)[0][0],
            gap_sequences=self._rows(_GAPS.format(where=devices), device_values)[0][0],
        )

    def page(self, which: Filter, size: int, after: Position | None) -> list[StoredPrediction]:
        """Returns at most `size` predictions, newest commit first."""
        condition, values = where(which)
        values["size"] = size
        if after is not None:
            condition = f"{condition} AND {_AFTER}"
            values |= {
                "received_us": after.received_us,
                "after_device": after.device_id,
                "after_spool": after.spool_id,
                "after_sequence": after.sequence,
            }
        with self._translated():
            rows = self._rows(_PAGE.format(where=condition), values)
        return [StoredPrediction(Position(*row[:4]), *row[4:]) for row in rows]

    def interrupt(self) -> None:
        """Makes the query that runs, and each later one, fail soon. From any thread."""
        self._interrupted.set()
        with contextlib.suppress(duckdb.ConnectionException):  # closed
            self._cursor.interrupt()

    def close(self) -> None:
        """Frees the cursor, and with it its transaction."""
        self._cursor.close()

    def _counts(self, query: str, values: dict[str, Any]) -> Sequence[Count]:
        return [Count(*row) for row in self._rows(query, {**values, "keys": MAX_KEYS})]

    def _rows(self, query: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        if self._interrupted.is_set():
            raise duckdb.InterruptException("interrupted before it began")
        rows: list[tuple[Any, ...]] = self._cursor.execute(query, values).fetchall()
        return rows
