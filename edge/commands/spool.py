"""The commands `spool ls|show|verify|export|repair`: what waits on this device, and is it sound?"""

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

from edge.commands.options import settings_with
from edge.spool import inspect
from edge.spool.directories import default_spool_dir
from edge.spool.export import Exporter, as_json
from edge.spool.identity import DamagedError
from edge.spool.inspect import Details, SpoolCheck, SpoolSummary
from edge.spool.recovery import repair as repairs
from servicekit.terminal import CommandError

app = typer.Typer(
    help="Look at the predictions that wait on this device, and repair what is damaged.",
    no_args_is_help=True,
)
Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
Where = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of a spool, or a file in it that was set aside. Not given: the spool of"
        " SIGHTLINE_EDGE_SPOOL_DIR or of this device.",
        show_default=False,
    ),
]


@app.command("ls")
def ls(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder to look in, and below. Not given: SIGHTLINE_EDGE_SPOOL_DIR, or where"
            " spools are by default.",
            show_default=False,
        ),
    ] = None,
    as_json_: Json = False,
) -> None:
    """List the spools below a folder. Example: sightline spool ls --json."""
    with _sentences():
        found = [inspect.summary(path) for path in inspect.below(_folder(folder))]
    if as_json_:
        for one in found:
            typer.echo(json.dumps(asdict(one)))
        return
    table = Table("device", "pending", "oldest", "bytes", "in use by", "set aside")
    table.add_column("spool", overflow="fold")
    for one in found:
        table.add_row(*_columns(one), one.path)
    Console().print(table)


@app.command("show")
def show(
    path: Where = None,
    count: Annotated[
        int, typer.Option("--next", help="How many of the next predictions to show.", min=0)
    ] = 5,
    as_json_: Json = False,
) -> None:
    """Show one spool in detail. Example: sightline spool show --next 3 --json."""
    with _sentences():
        file = inspect.file_at(_spool(path))
        found = inspect.details(file, count)
        identity = inspect.identity_of(file)
    following = [as_json(identity, row) for row in found.next] if identity else []
    if as_json_:
        plain = asdict(found) | {"next": following}
        typer.echo(json.dumps({**plain.pop("summary"), **plain}))
        return
    _print_details(found)
    for one in following:
        typer.echo(json.dumps(one))


@app.command("verify")
def verify(path: Where = None, as_json_: Json = False) -> None:
    """Read all of a spool and check it; exit code 1: it is damaged.

    Changes nothing, and works while a node runs. Example: sightline spool verify --json.
    """
    with _sentences():
        verdict = inspect.verify(inspect.file_at(_spool(path)))
    if as_json_:
        typer.echo(json.dumps(asdict(verdict) | {"is_sound": verdict.is_sound}))
    else:
        _print_verdict(verdict)
    if not verdict.is_sound:
        raise typer.Exit(1)


@app.command("export")
def export(
    path: Where = None,
    since: Annotated[
        int, typer.Option("--since-sequence", help="First sequence to print.", min=0)
    ] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as predictions arrive, until interrupted.")
    ] = False,
    as_json_: Annotated[  # noqa: ARG001 - so that every command has it
        bool, typer.Option("--json", help="JSON lines, which it prints in any case.")
    ] = False,
) -> None:
    """Print one JSON line per prediction, oldest first, as protobuf writes it.

    Works while a node runs, and on damaged files; what cannot be read is said on stderr.
    Example: sightline spool export --follow | jq .image_id.
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


@app.command("repair")
def repair(
    path: Where = None,
    device_id: Annotated[
        str | None, typer.Option(help="Whose spool it is, where nothing says so any more.")
    ] = None,
    spool_id: Annotated[
        str | None, typer.Option(help="Which spool it is, where nothing says so any more.")
    ] = None,
    as_json_: Json = False,
) -> None:
    """Salvage what is readable in a damaged spool, or a set-aside file, and declare the rest.

    The node must not be running. A set-aside file becomes a spool of its own, which the node ships
    when it starts. Example: sightline spool repair spool/spool.damaged-1.db --json.
    """
    with _sentences():
        done = repairs.repair(inspect.file_at(_spool(path)), device_id, spool_id)
    if as_json_:
        lost = [{**asdict(one), "reason": one.reason.name} for one in done.lost]
        typer.echo(json.dumps(asdict(done) | {"lost": lost}))
    elif done.was_damaged:
        count = sum(one.count for one in done.lost)
        typer.echo(
            f"{done.predictions} predictions are in {done.spool} (spool {done.spool_id}), "
            f"{count} are lost and declared"
        )
    else:
        typer.echo(f"{done.path} is sound: {done.predictions} predictions")


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn what files and SQLite raise into a sentence for people."""
    try:
        yield
    except DamagedError as error:
        raise CommandError(
            f"the spool is damaged: {error}; `sightline spool verify` tells"
        ) from error
    except BrokenPipeError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise CommandError(f"the spool cannot be used: {error}") from error


def _folder(folder: Path | None) -> Path:
    given = folder or settings_with().spool_dir or default_spool_dir("x").parent
    if not given.is_dir():
        raise CommandError(f"folder must be an existing folder (got {str(given)!r})")
    return given


def _spool(path: Path | None) -> Path:
    if path is not None:
        return path
    settings = settings_with()
    return settings.spool_dir or default_spool_dir(settings.device_id)


def _columns(one: SpoolSummary) -> list[str]:
    return [
        one.device_id if one.problem is None else f"{one.device_id} ({one.problem})",
        f"{one.pending:,}",
        "" if one.oldest_age_seconds is None else f"{one.oldest_age_seconds:,.0f} s",
        f"{one.bytes:,}",
        one.in_use_by or "",
        ", ".join(one.set_aside),
    ]


def _print_details(found: Details) -> None:
    names = ("device", "pending", "oldest", "bytes", "in use by process", "set aside")
    table = Table(show_header=False)
    table.add_row("folder", found.summary.path)
    table.add_row("spool", found.summary.spool_id)
    for name, text in zip(names, _columns(found.summary), strict=True):
        table.add_row(name, text)
    table.add_row("committed through", f"{found.acknowledged:,}")
    if found.first_pending is not None:
        table.add_row("pending sequences", f"{found.first_pending} to {found.last_pending}")
    table.add_row("predictions", f"{found.predictions:,}")
    for reason, count in found.gaps.items():
        table.add_row(f"lost: {reason}", f"{count:,}")
    table.add_row("bytes of the file in use", f"{found.bytes_in_use:,} of {found.bytes_taken:,}")
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
        typer.echo("A node salvages it when it starts; so does `sightline spool repair`.", err=True)
