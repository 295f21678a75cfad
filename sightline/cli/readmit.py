"""`sightline readmit`: accepts rejected predictions that keep every rule now."""

import contextlib
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from servicekit.distribution import install_hint
from servicekit.errors import SightlineError
from servicekit.terminal import CommandError

if TYPE_CHECKING:
    from ingest_service.store.duckdb.file_store import DuckDBStore
    from ingest_service.store.duckdb.rejected import RejectedFilter


def readmit(
    database: Annotated[
        Path, typer.Option(help="DuckDB file of an ingest service that is stopped.")
    ] = Path("sightline.duckdb"),
    reason: Annotated[
        list[str] | None,
        typer.Option(
            help="Only predictions that broke this rule; may be given more than once. Default: the"
            " rules that a wrong clock breaks, CAPTURED_AT_IN_FUTURE and CAPTURED_AT_TOO_EARLY."
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Only this device; may be given more than once.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only predictions rejected at or after this time, UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Only predictions rejected before this time, UTC.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only count, and change nothing.")] = False,
) -> None:
    """Accept rejected predictions that keep every rule now.

    Example: sightline readmit --dry-run

    For predictions that a server with a wrong clock rejected. Each moves once, with a new
    `received_at`; those that still break a rule stay. Stop the service first, because it locks the
    file.
    """
    # DuckDB comes with the `ingest` extra, and takes a while to load.
    try:
        from ingest_service.store.duckdb.file_store import DuckDBStore
        from ingest_service.store.duckdb.opening import StoreOpenError
        from ingest_service.store.duckdb.rejected import REASONS, RejectedFilter
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('ingest')}") from error
    if not database.is_file():
        raise CommandError(f"--database: there is no file {database}")
    chosen = RejectedFilter(tuple(reason or REASONS), tuple(device or ()), _utc(since), _utc(until))
    try:
        with contextlib.closing(DuckDBStore(database)) as store:
            count, kept = _move_all(store, chosen, dry_run=dry_run)
    except StoreOpenError as error:
        raise CommandError(str(error)) from error
    except SightlineError as error:
        raise CommandError(f"the command stopped halfway and can be repeated: {error}") from error
    typer.echo(json.dumps({"readmitted": count, "kept": dict(kept), "dry_run": dry_run}))


def _move_all(
    store: "DuckDBStore", chosen: "RejectedFilter", *, dry_run: bool
) -> tuple[int, Counter[str]]:
    """Return the number of readmitted predictions, and of those kept, by reason."""
    from ingest_service.receive.ptars_decoder import PtarsDecoder
    from ingest_service.receive.readmission import recheck
    from ingest_service.store.duckdb.rejected import Rejected

    decoder, count = PtarsDecoder(), 0
    kept: Counter[str] = Counter()
    after: Rejected | None = None
    while True:
        now = datetime.now(UTC)
        with store.transaction() as transaction:
            rejected = transaction.rejected(chosen, after)
            if not rejected:
                return count, kept
            batch = recheck(rejected, decoder, now)
            if batch.predictions.num_rows and not dry_run:
                transaction.readmit(batch.predictions, now)
        count += batch.predictions.num_rows
        kept += batch.kept
        after = batch.last


def _utc(time: datetime | None) -> datetime | None:
    """Return the time with the zone UTC where it has none."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
