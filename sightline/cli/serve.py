"""`sightline serve ...` and `sightline up`: the services, as processes of their own."""

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from servicekit.distribution import install_hint
from servicekit.telemetry import background_stderr
from servicekit.terminal import CommandError
from sightline.cli.processes import ServiceProcess, is_taken

app = typer.Typer(help="Run one service in the foreground.", no_args_is_help=True)

# What a service cannot start without, and a plain install does not bring.
_NEEDS = {
    "ingest_service": ("ingest", ("duckdb", "ptars", "pyarrow", "structlog")),
    "inference_service": ("inference", ("numpy", "onnxruntime", "PIL", "yaml", "structlog")),
}
# Every flag goes to the service, --help too: its settings are documented in one place.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("ingest", context_settings=_PASS_ON, add_help_option=False)
def ingest(context: typer.Context) -> None:
    """Take predictions into DuckDB. Flags: `sightline serve ingest --help`.

    Example: sightline serve ingest --database sightline.duckdb
    """
    _become("ingest_service", context.args)


@app.command("inference", context_settings=_PASS_ON, add_help_option=False)
def inference(context: typer.Context) -> None:
    """Answer for devices that cannot. Flags: `sightline serve inference --help`.

    Example: sightline serve inference --model-repository models/repository
    """
    _become("inference_service", context.args)


def up(
    model_repository: Annotated[
        Path, typer.Option(help="Folder of models: <name>/<version>/model.onnx.")
    ] = Path("models/repository"),
    data: Annotated[
        Path, typer.Option(help="Folder of the database; made if it is not there.")
    ] = Path("sightline-data"),
    ingest_listen: Annotated[
        str, typer.Option(help="Where to serve ingest, host:port; port 0: any.")
    ] = "127.0.0.1:50051",
    inference_listen: Annotated[
        str, typer.Option(help="Where to serve inference, host:port; port 0: any.")
    ] = "127.0.0.1:50052",
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines even on a terminal.")] = False,
) -> None:
    """Run both services, for a laptop, until Ctrl-C.

    Says on stderr where each is and what to do next; on stdout, unless that is a terminal, one
    JSON line per service when it is ready. If one ends, so does the other.

    Example: sightline up --model-repository models/repository
    """
    background_stderr.install()
    for module in _NEEDS:
        _check_installed(module)
    _check_up(model_repository, data, [ingest_listen, inference_listen])
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    database = data / "sightline.duckdb"
    flags = {
        "ingest_service": ["--listen", ingest_listen, "--database", str(database)],
        "inference_service": [
            *("--listen", inference_listen),
            *("--model-repository", str(model_repository)),
        ],
    }
    with ExitStack() as services:
        running = []
        for module, arguments in flags.items():
            typer.echo(f"starting {module} ...", err=True)
            running.append(services.enter_context(ServiceProcess(module, arguments)))
        if as_json or not sys.stdout.isatty():
            for service in running:
                typer.echo(json.dumps(service.ready))
        _say_ready([service.address for service in running], database, model_repository)
        _wait(running, stop)
        typer.echo("stopping both ...", err=True)


def _check_up(model_repository: Path, data: Path, listen: Sequence[str]) -> None:
    """Say before anything starts what would keep it from starting."""
    if not model_repository.is_dir():
        raise CommandError(
            f"--model-repository: {model_repository} is no folder: "
            "`sightline models add MODEL.onnx --name NAME --repository FOLDER` makes one"
        )
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"--data: {data} cannot be made ({error.strerror}): choose another folder"
        ) from error
    for flag, address in zip(("--ingest-listen", "--inference-listen"), listen, strict=True):
        if is_taken(address):
            raise CommandError(
                f"{flag}: something listens at {address} already: stop it, or choose another port "
                "(0: any that is free)"
            )


def _say_ready(addresses: Sequence[str], database: Path, repository: Path) -> None:
    log_to, ask = addresses
    lines = [
        f"ingest     ready at {log_to}, database {database}",
        f"inference  ready at {ask}, models of {repository}",
        "Next, in another terminal:",
        f"  sightline infer PICTURE.jpg --target {ask}",
        f"  sightline log PICTURES/ --ingest {log_to} --inference {ask}",
        f"  sightline stats --target {log_to}",
        "Ctrl-C ends both.",
    ]
    typer.echo("\n".join(lines), err=True)


def _wait(running: list[ServiceProcess], stop: threading.Event) -> None:
    """Return when `stop` is set; raise CommandError when a service ends before."""
    while not stop.wait(0.2):
        for service in running:
            if (code := service.process.poll()) is not None:
                raise CommandError(
                    f"{service.module} ended with exit code {code}: its log, above, says why"
                )


def _become(module: str, arguments: list[str]) -> None:
    _check_installed(module)
    # The same process, so that signals and the exit code are the service's own.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


def _check_installed(module: str) -> None:
    extra, packages = _NEEDS[module]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{module} needs {', '.join(missing)}: {install_hint(extra)}")
