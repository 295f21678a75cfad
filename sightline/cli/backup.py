"""`sightline backup` and `sightline restore`: a copy of the database, and its way back."""

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import grpc
import typer

from edge.commands.options import settings_with
from edge.endpoints import ingest_endpoint
from servicekit.distribution import install_hint
from servicekit.durable import take_name
from servicekit.errors import from_rpc_error
from servicekit.terminal import CommandError
from sightline.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc

_PROGRESS_SHARE = 0.1


def backup(
    to: Annotated[Path, typer.Option(help="File of the backup; must not be there.")],
    target: Annotated[str | None, typer.Option(help="Ingest service, host:port.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that it may take.", min=1.0)] = 3600.0,
) -> None:
    """Copy the database of a running ingest service. Example: sightline backup --to 2026-11-30.db.

    The copy is of one moment, and devices go on logging meanwhile. It needs the scope `admin`; or,
    where callers need no credential, to be on the service's own machine.
    """
    if to.exists():
        raise CommandError(f"--to: {to} is there already: name another file")
    if not to.parent.is_dir():
        raise CommandError(f"--to: {to} cannot be written: make the folder {to.parent} first")
    service = ingest_endpoint(settings_with(ingest_target=target))
    # Not of the PID: in a container that is the same each time, and what was killed left its own.
    partial = to.with_name(f".{to.name}.partial-{uuid.uuid4()}")
    try:
        with service.channel() as channel:
            stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
            request = ingest_service_pb2.BackupRequest()
            answers = stub.Backup(request, timeout=timeout, metadata=service.metadata)
            summary = _write(partial, answers)
        take_name(partial, to)
    except FileExistsError as error:
        raise CommandError(f"--to: {to} is there already: name another file") from error
    except OSError as error:
        raise CommandError(f"--to: {to} cannot be written: {error}") from error
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    typer.echo(
        json.dumps(
            {
                "file": str(to),
                "bytes": summary.size_bytes,
                "predictions": summary.predictions,
                "rejected": summary.rejected,
                "spools": summary.spools,
            }
        )
    )


def restore(
    file: Annotated[Path, typer.Argument(help="What `sightline backup` wrote.")],
    to: Annotated[
        Path, typer.Option(help="Where the service looks for its database; must not be there.")
    ] = Path("sightline.duckdb"),
) -> None:
    """Put a backup back, verified. Example: sightline restore 2026-11-30.db --to sightline.duckdb.

    The service must be stopped. Devices that are ahead of the backup declare what it lacks as gaps.
    """
    # DuckDB comes with the `ingest` extra, and takes a while to load.
    try:
        from ingest_service.store.duckdb import restore as restoring
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('ingest')}") from error
    try:
        found, aside = restoring.restore(file, to)
    except restoring.RestoreError as error:
        raise CommandError(str(error)) from error
    for path in aside:
        typer.echo(f"the log of the database that was here is now {path}", err=True)
    typer.echo(
        json.dumps(
            {
                "file": str(to),
                "predictions": found.predictions,
                "rejected": found.rejected,
                "spools": found.spools,
            }
        )
    )


def _write(
    path: Path, answers: Iterable[ingest_service_pb2.BackupResponse]
) -> ingest_service_pb2.BackupSummary:
    """Write what comes to a file of its own, and hold it against what was sent."""
    progress, digest, size = _Progress(), hashlib.sha256(), 0
    summary = None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for answer in answers:
            kind = answer.WhichOneof("part")
            if kind == "progress":
                progress.copied(answer.progress.rows, answer.progress.total_rows)
            elif kind == "data":
                size += file.write(answer.data)
                digest.update(answer.data)
                progress.received(size)
            elif kind == "summary":
                summary = answer.summary
        file.flush()
        os.fsync(file.fileno())
    progress.close()
    if summary is None or (size, digest.digest()) != (summary.size_bytes, summary.sha256):
        raise CommandError("the backup did not come whole: try again")
    return summary


class _Progress:
    """A line on stderr: rewritten on a terminal, else one for every tenth of the rows."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._said = 0.0

    def copied(self, rows: int, of: int) -> None:
        share = rows / of if of else 1.0
        if self._rewrites or share >= self._said + _PROGRESS_SHARE:
            self._said = share
            self._say(f"copied {rows:,} of {of:,} rows ({share:.0%})")

    def received(self, size: int) -> None:
        if self._rewrites:
            self._say(f"received {size / 1e6:,.1f} MB")

    def close(self) -> None:
        if self._rewrites:
            typer.echo("", err=True)

    def _say(self, text: str) -> None:
        typer.echo(f"\r{text:<60}" if self._rewrites else text, err=True, nl=not self._rewrites)
