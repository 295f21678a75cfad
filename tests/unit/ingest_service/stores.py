"""Stores for tests, and functions that copy and damage their files."""

import contextlib
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb

from ingest_service.store.duckdb import migrations
from ingest_service.store.duckdb.commit_record import commit_record_path
from ingest_service.store.duckdb.file_format import HEADER_BYTES, parse_database
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.migrations import VERSIONS, migrate
from ingest_service.store.protocol import SpoolKey
from tests.unit.ingest_service.samples import SPOOL, message, predictions
from tests.unit.ingest_service.store_conformance import commit, everything

_TABLES = """
    SELECT table_name FROM duckdb_tables()
    WHERE database_name = current_database() AND table_name <> 'schema_version'
"""


@contextlib.contextmanager
def opened(path: Path, *, trust: bool = False) -> Iterator[DuckDBStore]:
    """Open a store, and close it afterwards."""
    store = DuckDBStore(path, trust=trust)
    try:
        yield store
    finally:
        store.close()


def log(store: DuckDBStore, first: int, last: int, of: SpoolKey = SPOOL) -> None:
    """Commit predictions of these sequences."""
    commit(store, message(*predictions(first, last), of=of))


def checkpoint(store: DuckDBStore) -> None:
    """Move the log into the database."""
    with contextlib.closing(store._cursor()) as cursor:
        cursor.execute("CHECKPOINT")


def leave(path: Path, folder: Path) -> Path:
    """Copy the files of an open store, as a killed process would leave them."""
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, folder)
    return folder / path.name


def sequences(store: DuckDBStore) -> list[int]:
    """Return the stored sequences, lowest first."""
    return sorted(stored.position.sequence for stored in everything(store))


def make_of_old_format(path: Path, rows: int) -> None:
    """Create a store in DuckDB's default format, whose logs do not name their database."""
    new = path.with_name("new.duckdb")
    with opened(new) as store:
        log(store, 1, rows)
    with duckdb.connect(str(path)) as old:
        migrate(old)
        old.execute(f"ATTACH '{new}' AS new (READ_ONLY)")
        for table in ("predictions", "watermarks", "streams"):
            old.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new.{table}")
    new.unlink()
    commit_record_path(new).unlink()


def make_of_schema(path: Path, new: Path, number: int) -> None:
    """Create a store of an older schema with the rows of a closed store of the newest.

    Args:
        path: the file to create.
        new: the file whose tables and columns are copied, where the older schema has them.
        number: version of the older schema, >= 1.
    """
    with duckdb.connect(str(path)) as old:
        old.execute("CREATE TABLE schema_version (version INTEGER, applied_at TIMESTAMPTZ)")
        for step, script in enumerate(VERSIONS[:number], 1):
            text = resources.files(migrations.__package__).joinpath(script).read_text("utf-8")
            old.execute(text)
            old.execute(f"INSERT INTO schema_version VALUES ({step}, now())")
        old.execute(f"ATTACH '{new}' AS new (READ_ONLY)")
        for (table,) in old.execute(_TABLES).fetchall():
            described = old.execute(f"DESCRIBE {table}").fetchall()
            columns = ", ".join(name for name, *_ in described)
            old.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")


def version(path: Path) -> int:
    """Return the version of a database's format."""
    header = parse_database(path.read_bytes()[:HEADER_BYTES])
    assert header is not None
    return header.version


def ask(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query on a closed database."""
    with duckdb.connect(str(path), read_only=True) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
        return rows
