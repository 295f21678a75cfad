"""Migrations of the schema of a database file."""

import contextlib
from collections.abc import Sequence
from importlib import resources

import duckdb

VERSIONS: Sequence[str] = (
    "schema.sql",
    "schema_2.sql",
    "schema_3.sql",
    "schema_4.sql",
    "schema_5.sql",
    "schema_6.sql",
)
"""SQL files of this package; the nth migrates from version n - 1 to n. Version 0 is empty."""


class NewerSchemaError(Exception):
    """The file was written by a newer Sightline. The message is one sentence for people."""


def migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Migrate an open database to the newest version, each step in a transaction.

    Raises:
        NewerSchemaError: the file's version is newer than this Sightline.
        duckdb.Error: a step failed; the file is as it was before that step.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version"
        " (version INTEGER NOT NULL, applied_at TIMESTAMPTZ NOT NULL)"
    )
    version = _version(connection)
    if version > len(VERSIONS):
        raise NewerSchemaError(
            f"its schema has version {version}, and this Sightline supports versions up to"
            f" {len(VERSIONS)}: use a newer Sightline, or another file"
        )
    for step in range(version, len(VERSIONS)):
        _apply(connection, step)


def _version(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return int(row[0]) if row else 0


def _apply(connection: duckdb.DuckDBPyConnection, step: int) -> None:
    script = resources.files(__package__).joinpath(VERSIONS[step]).read_text(encoding="utf-8")
    connection.execute("BEGIN")
    try:
        connection.execute(script)
        connection.execute("INSERT INTO schema_version VALUES (?, now())", [step + 1])
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # a COMMIT that failed has left no transaction
            connection.execute("ROLLBACK")
        raise
