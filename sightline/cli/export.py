"""`sightline export`: what a stopped ingest service has stored, as Parquet files."""

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from servicekit.distribution import install_hint
from servicekit.errors import SightlineError
from servicekit.private_files import keep_private
from servicekit.terminal import CommandError


def export(
    to: Annotated[Path, typer.Option(help="Folder of the files; made if it is not there.")],
    database: Annotated[
        Path, typer.Option(help="DuckDB file of an ingest service that is stopped.")
    ] = Path("sightline.duckdb"),
) -> None:
    """Export what never was exported, by day and device. Example: sightline export --to out.

    A running service holds the file: it exports by itself with `--export-dir`.
    """
    # DuckDB comes with the `ingest` extra, and takes a while to load.
    try:
        from ingest_service.store.duckdb.file_store import DuckDBStore
        from ingest_service.store.duckdb.opening import StoreOpenError
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('ingest')}") from error
    if not database.is_file():
        raise CommandError(f"--database: {database} is no file")
    keep_private()
    try:
        with contextlib.closing(DuckDBStore(database)) as store:
            maintenance, now = store.maintenance(), datetime.now(UTC)
            maintenance.update_rollups(now, everything=True)
            files = maintenance.export(to, now)
    except StoreOpenError as error:
        raise CommandError(str(error)) from error
    except (SightlineError, OSError) as error:
        raise CommandError(f"the export failed, and can be repeated: {error}") from error
    typer.echo(json.dumps({"files": files, "folder": str(to)}))
