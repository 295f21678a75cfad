"""The commands `spool ls|show|verify|export|repair`: the predictions that wait on this device."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edge.commands.options import Json, settings_with
from edge.spool import inspect
from edge.spool.directories import default_spool_dir
from edge.spool.export import Exporter, as_json
from edge.spool.identity import DamagedError
from edge.spool.inspect import Details, SpoolCheck, SpoolSummary
from edge.spool.recovery import repair as repairs
from servicekit.help import Command, Group
from servicekit.standard_streams import OutputError
from servicekit.terminal import CommandError

app = typer.Typer(
    cls=Group,
    help="Show the predictions that wait on this device, and repair damaged spools.",
    no_args_is_help=True,
)
SpoolPath = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of a spool, or a file that was set aside in it. Not given: the spool of"
        " SIGHTLINE_EDGE_SPOOL_DIR, or of this device.",
        show_default=False,
    ),
]


@app.command("ls", cls=Command)
def ls(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder to search, with the folders in it. Not given: SIGHTLINE_EDGE_SPOOL_DIR, or"
            " the default place of spools.",
            show_default=False,
        ),
    ] = None,
    as_json_: Json = False,
) -> None:
    """List the spools in a folder.

    Example: sightline spool ls --json
    """
    with _sentences():
        summaries = [inspect.summary(path) for path in inspect.below(_folder(folder))]
    if as_json_:
        for summary in summaries:
            typer.echo(json.dumps(asdict(summary)))
        return
    table = Table("device", "pending", "oldest", "bytes", "in use by", "set aside")
    table.add_column("spool", overflow="fold")
    for summary in summaries:
        table.add_row(*_columns(summary), summary.path)
    Console().print(table)


@app.command("show", cls=Command)
def show(
    path: SpoolPath = None,
    count: Annotated[
        int,
        typer.Option("--next", help="How many of the next predictions to show.", min=0),
    ] = 5,
    as_json_: Json = False,
) -> None:
    """Show one spool in detail.

    Example: sightline spool show --next 3 --json
    """
    with _sentences():
        file = inspect.file_at(_spool(path))
        details = inspect.details(file, count)
        identity = inspect.identity_of(file)
    following = [as_json(identity, row) for row in details.next] if identity else []
    if as_json_:
        plain = asdict(details) | {"next": following}
        typer.echo(json.dumps({**plain.pop("summary"), **plain}))
        return
    _print_details(details)
    for prediction in following:
        typer.echo(json.dumps(prediction))


@app.command("verify", cls=Command)
def verify(path: SpoolPath = None, as_json_: Json = False) -> None:
    """Read all of a spool and check it.

    Example: sightline spool verify --json

    Changes nothing, and works while a node runs. Exit code 1: the spool is damaged.
    """
    with _sentences():
        verdict = inspect.verify(inspect.file_at(_spool(path)))
    if as_json_:
        typer.echo(json.dumps(asdict(verdict) | {"is_sound": verdict.is_sound}))
    else:
        _print_verdict(verdict)
    if not verdict.is_sound:
        raise typer.Exit(1)


@app.command("export", cls=Command)
def export(
    path: SpoolPath = None,
    since: Annotated[
        int, typer.Option("--since-sequence", help="First sequence to print.", min=0)
    ] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep printing new predictions until Ctrl-C.")
    ] = False,
    as_json_: Annotated[  # noqa: ARG001 - every command has it
        bool, typer.Option("--json", help="JSON lines, which this command always prints.")
    ] = False,
) -> None:
    """Print one JSON line per prediction, oldest first, in protobuf's JSON form.

    Example: sightline spool export --follow | jq .image_id

    Works while a node runs, and on damaged files: sequences that cannot be read are reported on
    stderr.
    """
    with _sentences():
        file = inspect.file_at(_spool(path))
        exporter = Exporter(file, since, lambda text: typer.echo(f"spool: {text}", err=True))
        try:
            for line in exporter.follow() if follow else exporter.lines():
                if line is None:
                    sys.stdout.flush()
                else:
                    sys.stdout.write(json.dumps(line) + "\n")
        except KeyboardInterrupt:
            return


@app.command("repair", cls=Command)
def repair(
    path: SpoolPath = None,
    device_id: Annotated[
        str | None, typer.Option(help="Device id of the spool, where the damage destroyed it.")
    ] = None,
    spool_id: Annotated[
        str | None, typer.Option(help="Id of the spool, where the damage destroyed it.")
    ] = None,
    as_json_: Json = False,
) -> None:
    """Salvage what is readable in a damaged spool, or a set-aside file, and declare the rest lost.

    Example: sightline spool repair spool/spool.damaged-1.db --json

    The node must not be running. A set-aside file becomes a spool of its own, which the node ships
    when it starts.
    """
    with _sentences():
        result = repairs.repair(inspect.file_at(_spool(path)), device_id, spool_id)
    if as_json_:
        lost = [{**asdict(gap), "reason": gap.reason.name} for gap in result.lost]
        typer.echo(json.dumps(asdict(result) | {"lost": lost}))
    elif result.was_damaged:
        count = sum(gap.count for gap in result.lost)
        typer.echo(
            f"{result.predictions} predictions are in {result.spool} (spool {result.spool_id}), "
            f"{count} are lost and declared"
        )
    else:
        typer.echo(f"{result.path} is sound: {result.predictions} predictions")


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn errors of files and SQLite into one sentence."""
    try:
        yield
    except DamagedError as error:
        raise CommandError(
            f"the spool is damaged: {error}; `sightline spool verify` lists the damage"
        ) from error
    except OutputError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise CommandError(f"the spool cannot be used: {error}") from error


def _folder(folder: Path | None) -> Path:
    searched = folder or settings_with().spool_dir or default_spool_dir("x").parent
    if not searched.is_dir():
        raise CommandError(f"There is no folder {searched}")
    return searched


def _spool(path: Path | None) -> Path:
    if path is not None:
        return path
    settings = settings_with()
    return settings.spool_dir or default_spool_dir(settings.device_id)


def _columns(summary: SpoolSummary) -> list[str]:
    return [
        summary.device_id
        if summary.problem is None
        else f"{summary.device_id} ({summary.problem})",
        f"{summary.pending:,}" if summary.pending or summary.problem else "empty",
        "" if summary.oldest_age_seconds is None else f"{summary.oldest_age_seconds:,.0f} s",
        f"{summary.bytes:,}",
        summary.in_use_by or "",
        ", ".join(summary.set_aside),
    ]


def _print_details(details: Details) -> None:
    names = ("device", "pending", "oldest", "bytes", "in use by process", "set aside")
    table = Table(show_header=False)
    table.add_row("folder", details.summary.path)
    table.add_row("spool", details.summary.spool_id)
    for name, text in zip(names, _columns(details.summary), strict=True):
        table.add_row(name, text)
    table.add_row("committed through", f"{details.acknowledged:,}")
    if details.first_pending is not None:
        table.add_row("pending sequences", f"{details.first_pending} to {details.last_pending}")
    table.add_row("predictions", f"{details.predictions:,}")
    for reason, count in details.gaps.items():
        table.add_row(f"lost: {reason}", f"{count:,}")
    table.add_row(
        "bytes of the file in use", f"{details.bytes_in_use:,} of {details.bytes_taken:,}"
    )
    Console().print(table)


def _print_verdict(verdict: SpoolCheck) -> None:
    spool = (
        f"spool {verdict.spool_id} of {verdict.device_id}" if verdict.spool_id else "no identity"
    )
    typer.echo(
        f"{verdict.path}: {spool}; {verdict.predictions} predictions can be read, "
        f"{verdict.gap_sequences} sequences are declared lost"
    )
    for fault in verdict.faults:
        typer.echo(f"damaged: {fault}")
    for first, last in verdict.damaged:
        typer.echo(f"damaged: sequences {first} to {last} cannot be read")
    if not verdict.is_sound:
        typer.echo(
            "A node salvages the spool when it starts; `sightline spool repair` does it now.",
            err=True,
        )
