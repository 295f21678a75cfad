"""`sightline serve` and `sightline up`: the services, as processes of their own."""

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from servicekit.about import PROGRAM_VARIABLE
from servicekit.distribution import install_hint
from servicekit.help import CONNECTION, OUTPUT, Command, Group
from servicekit.standard_streams import OutputError
from servicekit.telemetry import background_stderr
from servicekit.terminal import CommandError
from sightline.cli.processes import ServiceProcess, StartCancelledError, is_taken

app = typer.Typer(cls=Group, help="Run one service in the foreground.", no_args_is_help=True)

# Packages that a service cannot start without and that a plain install does not bring.
_NEEDS = {
    "ingest_service": ("ingest", ("duckdb", "ptars", "pyarrow", "structlog")),
    "inference_service": ("inference", ("numpy", "onnxruntime", "PIL", "yaml", "structlog")),
    "console_service": ("console", ("fastapi", "uvicorn", "orjson", "python_multipart")),
}
_CONSOLE = "127.0.0.1:8080"
"""Address of the console unless one is given."""
# Every flag goes to the service, --help and --version too: its settings are documented once.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("ingest", cls=Command, context_settings=_PASS_ON, add_help_option=False)
def ingest(context: typer.Context) -> None:
    """Store predictions in DuckDB; `sightline serve ingest --help` lists the settings.

    Example: sightline serve ingest --database sightline.duckdb
    """
    _become("ingest_service", context)


@app.command("inference", cls=Command, context_settings=_PASS_ON, add_help_option=False)
def inference(context: typer.Context) -> None:
    """Answer for devices that cannot; `sightline serve inference --help` lists the settings.

    Example: sightline serve inference --model-repository models/repository
    """
    _become("inference_service", context)


@app.command("console", cls=Command, context_settings=_PASS_ON, add_help_option=False)
def console(context: typer.Context) -> None:
    """Show what the services know over HTTP; `sightline serve console --help` lists the settings.

    Example: sightline serve console --ingest-target 127.0.0.1:50051
    """
    _become("console_service", context)


def up(
    model_repository: Annotated[
        Path, typer.Option(help="Folder of models: <name>/<version>/model.onnx.")
    ] = Path("models/repository"),
    data: Annotated[
        Path, typer.Option(help="Folder of the database; created if it does not exist.")
    ] = Path("sightline-data"),
    ingest_listen: Annotated[
        str,
        typer.Option(
            help="Address of the ingest service, host:port; port 0: any.",
            rich_help_panel=CONNECTION,
        ),
    ] = "127.0.0.1:50051",
    inference_listen: Annotated[
        str,
        typer.Option(
            help="Address of the inference service, host:port; port 0: any.",
            rich_help_panel=CONNECTION,
        ),
    ] = "127.0.0.1:50052",
    console_listen: Annotated[
        str | None,
        typer.Option(
            help="Address of the console, host:port; port 0: any; empty: no console. Not given: "
            f"{_CONSOLE}, or any free port if that is taken.",
            rich_help_panel=CONNECTION,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON lines even on a terminal.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Run both services and the console, for a laptop, until Ctrl-C.

    Example: sightline up --model-repository models/repository

    The addresses and the next commands are printed on stderr. On stdout, unless it is a terminal,
    each of them is one JSON line when it is ready. If one ends, the others are stopped.
    """
    background_stderr.install()
    for module in ("ingest_service", "inference_service"):
        _check_installed(module)
    _check_up(
        model_repository,
        data,
        {
            "--ingest-listen": ingest_listen,
            "--inference-listen": inference_listen,
            "--console-listen": console_listen or "",
        },
    )
    console_address = _console_address(console_listen)
    stop = threading.Event()
    for number in _stop_signals():
        signal.signal(number, lambda *_: stop.set())
    database = data / "sightline.duckdb"
    flags = {
        "ingest_service": ["--listen", ingest_listen, "--database", str(database)],
        "inference_service": [
            *("--listen", inference_listen),
            *("--model-repository", str(model_repository)),
        ],
    }
    with suppress(StartCancelledError), ExitStack() as services:
        running: list[ServiceProcess] = []
        if console_address:
            flags["console_service"] = ["--listen", console_address]
        for module, arguments in flags.items():
            typer.echo(f"starting {module} ...", err=True)
            if module == "console_service":
                names = ("--ingest-target", "--inference-target")
                for name, service in zip(names, running, strict=True):
                    arguments += [name, service.address]
            running.append(
                services.enter_context(ServiceProcess(module, arguments, own_group=True, stop=stop))
            )
        if as_json or not sys.stdout.isatty():
            with suppress(OutputError):  # nobody reads it, and the services run all the same
                for service in running:
                    typer.echo(json.dumps(service.ready))
        _print_ready([service.address for service in running], database, model_repository)
        _wait(running, stop)
        typer.echo("stopping all ...", err=True)


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that end the services: the terminal's hang-up too, but for `nohup`."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def _console_address(listen: str | None) -> str:
    """Return the address that the console is to listen on; empty: it is not started."""
    if listen is None:
        try:
            _check_installed("console_service")
        except CommandError as error:
            typer.echo(f"no console: {error}", err=True)
            return ""
        return "127.0.0.1:0" if is_taken(_CONSOLE) else _CONSOLE
    if listen:
        _check_installed("console_service")
    return listen


def _check_up(model_repository: Path, data: Path, listen: Mapping[str, str]) -> None:
    """Raise CommandError before anything starts, for what would keep it from starting."""
    if not model_repository.is_dir():
        raise CommandError(
            f"--model-repository: {model_repository} is not a folder: "
            "`sightline models add MODEL.onnx --name NAME --repository FOLDER` creates one"
        )
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"--data: {data} cannot be created ({error.strerror}): choose another folder"
        ) from error
    for flag, address in listen.items():
        if is_taken(address):
            raise CommandError(
                f"{flag}: something listens at {address} already: stop it, or choose another port "
                "(0: any that is free)"
            )


def _print_ready(addresses: Sequence[str], database: Path, repository: Path) -> None:
    ingest_address, inference_address, *console_addresses = addresses
    lines = [
        f"ingest     ready at {ingest_address}, database {database}",
        f"inference  ready at {inference_address}, models of {repository}",
        *(f"console    ready at http://{address}" for address in console_addresses),
        "Next, in another terminal:",
        f"  sightline infer IMAGE.jpg --inference {inference_address}",
        f"  sightline log IMAGES/ --ingest {ingest_address} --inference {inference_address}",
        f"  sightline stats --ingest {ingest_address}",
        "Ctrl-C ends all of them.",
    ]
    typer.echo("\n".join(lines), err=True)


def _wait(running: list[ServiceProcess], stop: threading.Event) -> None:
    """Return when `stop` is set; raise CommandError when a service ends before."""
    while not stop.wait(0.2):
        for service in running:
            if (code := service.process.poll()) is not None:
                raise CommandError(
                    f"{service.module} ended with exit code {code}: its log above says why"
                )


def _become(module: str, context: typer.Context) -> None:
    """Replace this process by the service, so that signals and the exit code are its own."""
    _check_installed(module)
    os.environ[PROGRAM_VARIABLE] = context.command_path
    os.execv(sys.executable, [sys.executable, "-m", module, *context.args])  # noqa: S606


def _check_installed(module: str) -> None:
    extra, packages = _NEEDS[module]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{module} needs {', '.join(missing)}: {install_hint(extra)}")
