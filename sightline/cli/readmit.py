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
from servicekit.terminal import CommandError, UsageError

if TYPE_CHECKING:
    from ingest_service.receive.readmission import Correction
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
    server_time: Annotated[
        bool,
        typer.Option(
            help="Use the time of the rejection for captured_at where it is missing or before 2000."
        ),
    ] = False,
    add_seconds: Annotated[
        float, typer.Option(help="Seconds to add to a captured_at that is implausible.")
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option(help="Only count, and change nothing.")] = False,
) -> None:
    """Accept rejected predictions that keep every rule now.

    Example: sightline readmit --dry-run

    For predictions that were rejected because the clock of the server or of the device was wrong.
    Each moves once, with a new `received_at`; those that still break a rule stay. Where a capture
    time is corrected, the label `sightline.device_captured_at` keeps the device's. Stop the service
    first, because it locks the file.

    The answer has, by device, the smallest and the largest time from capture to rejection in
    seconds, which tells how wrong its clock was.
    """
    # DuckDB comes with the `ingest` extra, and takes a while to load.
    try:
        from ingest_service.receive.readmission import Correction
        from ingest_service.store.duckdb.file_store import DuckDBStore
        from ingest_service.store.duckdb.opening import StoreOpenError
        from ingest_service.store.duckdb.rejected import REASONS, RejectedFilter
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('ingest')}") from error
    if not database.is_file():
        raise CommandError(f"--database: there is no file {database}")
    if server_time and add_seconds:
        raise UsageError("--add-seconds: must not be given with --server-time")
    correction = Correction(add_seconds, server_time)
    if server_time and reason is None:
        reason = [*REASONS, "CAPTURED_AT_REQUIRED"]
    chosen = RejectedFilter(tuple(reason or REASONS), tuple(device or ()), _utc(since), _utc(until))
    try:
        with contextlib.closing(DuckDBStore(database)) as store:
            done = _move_all(store, chosen, correction, dry_run=dry_run)
    except StoreOpenError as error:
        raise CommandError(str(error)) from error
    except SightlineError as error:
        raise CommandError(f"the command stopped halfway and can be repeated: {error}") from error
    typer.echo(json.dumps({**done, "dry_run": dry_run}))


def _move_all(
    store: "DuckDBStore", chosen: "RejectedFilter", correction: "Correction", *, dry_run: bool
) -> dict[str, object]:
    """Return the number of readmitted predictions, those kept by reason, and lags by device."""
    from ingest_service.receive.ptars_decoder import PtarsDecoder
    from ingest_service.receive.readmission import recheck
    from ingest_service.store.duckdb.rejected import Rejected

    decoder, count = PtarsDecoder(), 0
    kept: Counter[str] = Counter()
    lags: dict[str, tuple[float, float]] = {}
    after: Rejected | None = None
    while True:
        now = datetime.now(UTC)
        with store.transaction() as transaction:
            rejected = transaction.rejected(chosen, after)
            if not rejected:
                return {"readmitted": count, "kept": dict(kept), "lag_seconds": lags}
            batch = recheck(rejected, decoder, now, correction)
            if batch.predictions.num_rows and not dry_run:
                transaction.readmit(batch.predictions, now)
        count += batch.predictions.num_rows
        kept += batch.kept
        for device, (low, high) in batch.lags.items():
            lowest, highest = lags.get(device, (low, high))
            lags[device] = (min(low, lowest), max(high, highest))
        after = batch.last


def _utc(time: datetime | None) -> datetime | None:
    """Return the time with the zone UTC where it has none."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
