"""`sightline export`: the predictions of a stopped ingest service as Parquet files."""

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
    to: Annotated[Path, typer.Option(help="Folder of the files; created if it does not exist.")],
    database: Annotated[
        Path, typer.Option(help="DuckDB file of an ingest service that is stopped.")
    ] = Path("sightline.duckdb"),
) -> None:
    """Export the predictions that were never exported, by day and device.

    Example: sightline export --to out

    The service must be stopped, because it locks the file. A running service exports by itself
    with the setting export_dir.
    """
    # DuckDB comes with the `ingest` extra, and takes a while to load.
    try:
        from ingest_service.store.duckdb.file_store import DuckDBStore
        from ingest_service.store.duckdb.opening import StoreOpenError
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('ingest')}") from error
    if not database.is_file():
        raise CommandError(f"--database: there is no file {database}")
    keep_private()
    try:
        with contextlib.closing(DuckDBStore(database)) as store:
            maintenance, now = store.maintenance(), datetime.now(UTC)
            maintenance.update_rollups(now, everything=True)
            files = maintenance.export(to, now)
    except StoreOpenError as error:
        raise CommandError(str(error)) from error
    except (SightlineError, OSError) as error:
        raise CommandError(f"the export failed and can be repeated: {error}") from error
    typer.echo(json.dumps({"files": files, "folder": str(to)}))
