"""`sightline backup` and `sightline restore`: a copy of the database, and putting it back."""

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

from edge.commands.options import IngestTarget, settings_with
from edge.endpoints import ingest_endpoint
from servicekit.distribution import install_hint
from servicekit.durable import take_name
from servicekit.errors import from_rpc_error
from servicekit.help import CONNECTION
from servicekit.terminal import CommandError
from sightline.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc

_PROGRESS_SHARE = 0.1


def backup(
    to: Annotated[Path, typer.Option(help="File of the backup; must not exist.")],
    target: IngestTarget = None,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds that the backup may take.", min=1.0, rich_help_panel=CONNECTION),
    ] = 3600.0,
) -> None:
    """Copy the database of a running ingest service.

    Example: sightline backup --to 2026-11-30.db

    The copy is of one moment, and devices go on logging meanwhile. The caller needs the scope
    `admin`; where callers need no credential, the command must run on the service's own machine.
    """
    if to.exists():
        raise CommandError(f"--to: {to} exists already: name another file")
    if not to.parent.is_dir():
        raise CommandError(f"--to: there is no folder {to.parent}: create it first")
    service = ingest_endpoint(settings_with(ingest_target=target))
    # Not the PID: in a container it is the same each time, and a killed run left its file behind.
    partial = to.with_name(f".{to.name}.partial-{uuid.uuid4()}")
    try:
        with service.channel() as channel:
            stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
            request = ingest_service_pb2.BackupRequest()
            answers = stub.Backup(request, timeout=timeout, metadata=service.metadata)
            summary = _write(partial, answers)
        take_name(partial, to)
    except FileExistsError as error:
        raise CommandError(f"--to: {to} exists already: name another file") from error
    except OSError as error:
        raise CommandError(f"--to: {to} cannot be written: {error}") from error
    except grpc.RpcError as error:
        raise service.explain(from_rpc_error(error), "ingest", "--ingest") from error
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
    file: Annotated[Path, typer.Argument(help="File that `sightline backup` wrote.")],
    to: Annotated[
        Path, typer.Option(help="Path of the service's database; must not exist.")
    ] = Path("sightline.duckdb"),
) -> None:
    """Verify a backup and put it in place of a database.

    Example: sightline restore 2026-11-30.db --to sightline.duckdb

    The service must be stopped. Devices that are ahead of the backup declare gaps for what it
    lacks.
    """
    # DuckDB comes with the `ingest` extra, and takes a while to load.
    try:
        from ingest_service.store.duckdb import restore as restoring
    except ImportError as error:
        raise CommandError(f"{error}: {install_hint('ingest')}") from error
    try:
        summary, aside = restoring.restore(file, to)
    except restoring.RestoreError as error:
        raise CommandError(str(error)) from error
    for path in aside:
        typer.echo(f"the write-ahead log of the former database is now {path}", err=True)
    typer.echo(
        json.dumps(
            {
                "file": str(to),
                "predictions": summary.predictions,
                "rejected": summary.rejected,
                "spools": summary.spools,
            }
        )
    )


def _write(
    path: Path, answers: Iterable[ingest_service_pb2.BackupResponse]
) -> ingest_service_pb2.BackupSummary:
    """Write the answers to a file and return the summary, checked against size and SHA-256."""
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
        raise CommandError("the backup arrived incomplete or changed: try again")
    return summary


class _Progress:
    """Progress on stderr: one line that is rewritten on a terminal, else a line per tenth."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._printed_share = 0.0

    def copied(self, rows: int, total: int) -> None:
        share = rows / total if total else 1.0
        if self._rewrites or share >= self._printed_share + _PROGRESS_SHARE:
            self._printed_share = share
            self._print(f"copied {rows:,} of {total:,} rows ({share:.0%})")

    def received(self, size: int) -> None:
        if self._rewrites:
            self._print(f"received {size / 1e6:,.1f} MB")

    def close(self) -> None:
        if self._rewrites:
            typer.echo("", err=True)

    def _print(self, text: str) -> None:
        typer.echo(f"\r{text:<60}" if self._rewrites else text, err=True, nl=not self._rewrites)
