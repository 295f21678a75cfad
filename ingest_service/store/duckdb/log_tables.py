"""The tables of a DuckDB store for SQL queries of callers, read in parts from one snapshot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import duckdb
import grpc
import pyarrow as pa

from servicekit.errors import SightlineError, invalid

PART_ROWS = 61_440
"""Maximum number of rows in a part: half a row group of DuckDB."""
_BATCH = 8192
_TIMES = ("received_at", "captured_at")
"""Columns of times by which parts are left out."""
_TABLES = """
    SELECT table_name FROM duckdb_tables()
    WHERE database_name = current_database() AND schema_name = 'main' ORDER BY ALL
"""
_VIEWS = """
    SELECT sql FROM duckdb_views()
    WHERE database_name = current_database() AND schema_name = 'main' AND NOT internal
    ORDER BY view_oid
"""


class DuckDBLogTables:
    """An implementation of `LogTables` on a reader's cursor.

    A part is a range of row ids. DuckDB renumbers rows only while no transaction reads them; the
    number of rows that a part had at first is compared nevertheless.

    Args:
        execute: runs a query in the reader's snapshot.
        translated: context manager that turns DuckDB's errors into SightlineErrors.
    """

    def __init__(
        self,
        execute: Callable[[str], duckdb.DuckDBPyConnection],
        translated: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._execute = execute
        self._translated = translated
        with translated():
            names = [name for (name,) in execute(_TABLES).fetchall()]
            self._schemas = {
                name: execute(f"SELECT * FROM {_quoted(name)} LIMIT 0").to_arrow_table().schema
                for name in names
            }
        self._parts: dict[str, list[tuple[int, int]]] = {}

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schema of each table by its name."""
        return self._schemas

    def views(self) -> Sequence[str]:
        """Return the statements that create the views."""
        with self._translated():
            return [sql for (sql,) in self._execute(_VIEWS).fetchall()]

    def parts(self, table: str, *, times: bool) -> pa.Table:
        """Return one row for each part of a table."""
        schema = self._schema(table)
        bounds = [
            f"min({name}) AS {name}_min, max({name}) AS {name}_max"
            for name in _TIMES
            if times and name in schema.names
        ]
        columns = ", ".join([f"rowid // {PART_ROWS} AS number, count(*) AS rows", *bounds])
        with self._translated():
            query = f"SELECT {columns} FROM {_quoted(table)} GROUP BY number ORDER BY number"
            found = self._execute(query).to_arrow_table()
        numbers, rows = (found.column(name).to_pylist() for name in ("number", "rows"))
        self._parts[table] = list(zip(numbers, rows, strict=True))
        return found

    def read(self, table: str, columns: Sequence[str], part: int) -> pa.RecordBatchReader:
        """Return the rows of a part in small batches."""
        schema = self._schema(table)
        if unknown := set(columns) - set(schema.names) or not columns:
            raise invalid("columns", f"must be columns of {table}, got {unknown}")
        parts = self._parts.get(table, [])
        if not 0 <= part < len(parts):
            raise invalid("part", f"must be in [0, {len(parts)}), got {part}")
        number, rows = parts[part]
        names = ", ".join(map(_quoted, columns))
        first = number * PART_ROWS
        where = f"rowid >= {first} AND rowid < {first + PART_ROWS}"
        with self._translated():
            query = f"SELECT {names} FROM {_quoted(table)} WHERE {where}"
            reader = self._execute(query).to_arrow_reader(_BATCH)
        batches = self._counted(reader, table, rows)
        return pa.RecordBatchReader.from_batches(reader.schema, batches)

    def _counted(
        self, reader: pa.RecordBatchReader, table: str, rows: int
    ) -> Iterator[pa.RecordBatch]:
        found = 0
        with self._translated():
            for batch in reader:
                found += batch.num_rows
                yield batch
        if found != rows:
            raise SightlineError(
                grpc.StatusCode.INTERNAL,
                "STORE_FAILED",
                f"a part of {table} has {found} rows, and had {rows} in the same snapshot",
            )

    def _schema(self, table: str) -> pa.Schema:
        if table not in self._schemas:
            raise invalid("table", f"must be a table of the log, got {table!r}")
        return self._schemas[table]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
