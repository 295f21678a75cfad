"""The last stream of each device: in memory until the maintenance writes it.

A device opens a stream with every message it sends. To update its row in each commit would cost
several milliseconds of CPU, so the rows of all devices are updated together, every few seconds. A
crash loses at most what was not written yet; the next stream of a device brings it again.
"""

import threading
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from ingest_service.store.record_types import LastStream, StreamAccount

WRITE_SECONDS = 5.0
"""Minimum time between two updates of the table, s."""
_MOST = 100_000
"""Maximum number of devices in memory; the oldest is discarded. About 1 KB each."""
_COLUMNS = ("opened_at", "clock_offset_seconds", "client", "account")
_SCHEMA = pa.schema(
    [
        ("device_id", pa.string()),
        ("opened_us", pa.int64()),
        ("clock_offset_seconds", pa.float64()),
        ("client", pa.string()),
        ("account", pa.string()),
    ]
)
_UPDATE = """
    UPDATE devices AS d SET
        opened_at = make_timestamptz(i.opened_us),
        clock_offset_seconds = i.clock_offset_seconds,
        client = i.client,
        account = i.account
    FROM incoming AS i WHERE d.device_id = i.device_id
"""
_ADD = """
    INSERT INTO devices
    SELECT device_id, make_timestamptz(opened_us), clock_offset_seconds, client, account
    FROM incoming ANTI JOIN devices USING (device_id)
"""

_Row = tuple[int, float | None, str, str | None]
"""opened_us, clock_offset_seconds, client, account as JSON."""


class LastStreams:
    """The last streams that are committed and not in the table `devices` yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}

    def committed(self, streams: pa.Table) -> None:
        """Add the streams of a commit, in the order in which they were opened."""
        devices = streams.column("device_id").to_pylist()
        columns = [streams.column(name) for name in _COLUMNS]
        columns[0] = columns[0].cast(pa.int64())
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        with self._lock:
            self._rows.update(zip(devices, rows, strict=True))
            while len(self._rows) > _MOST:
                self._rows.pop(next(iter(self._rows)))

    def waiting(self) -> Mapping[str, _Row]:
        """Return the rows that are not written yet, by device."""
        with self._lock:
            return dict(self._rows)

    def written(self, rows: Mapping[str, _Row]) -> None:
        """Forget rows of `waiting` that were committed to the table."""
        with self._lock:
            for device, row in rows.items():
                if self._rows.get(device) is row:
                    del self._rows[device]


def write_streams(cursor: duckdb.DuckDBPyConnection, rows: Mapping[str, _Row]) -> None:
    """Update the table `devices`, in the open transaction."""
    columns = zip(*((device, *row) for device, row in rows.items()), strict=True)
    arrays = [pa.array(list(c), f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
    cursor.register("incoming", pa.Table.from_arrays(arrays, schema=_SCHEMA))
    cursor.execute(_UPDATE)
    cursor.execute(_ADD)
    cursor.unregister("incoming")


def as_stream(row: _Row) -> LastStream:
    """Return a row as the type of the store."""
    opened_us, offset, client, account = row
    return LastStream(
        opened_us, offset, client, None if account is None else StreamAccount.from_json(account)
    )
