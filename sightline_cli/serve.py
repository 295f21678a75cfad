"""`sightline serve ...` and `sightline up`: the services, as processes of their own."""

import importlib.util
import json
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from servicekit.terminal import CommandError
from sightline_cli.processes import ServiceProcess

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
    """Take predictions into DuckDB. Flags: `sightline serve ingest --help`."""
    _become("ingest_service", context.args)


@app.command("inference", context_settings=_PASS_ON, add_help_option=False)
def inference(context: typer.Context) -> None:
    """Answer for devices that cannot. Flags: `sightline serve inference --help`."""
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
) -> None:
    """Run both services, for a laptop, until Ctrl-C.

    Prints one JSON line per service when it is ready. If one ends, so does the other.
    """
    for module in _NEEDS:
        _check_installed(module)
    data.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as services:
        database = str(data / "sightline.duckdb")
        flags = {
            "ingest_service": ["--listen", ingest_listen, "--database", database],
            "inference_service": [
                *("--listen", inference_listen),
                *("--model-repository", str(model_repository)),
            ],
        }
        running = [
            services.enter_context(ServiceProcess(module, arguments))
            for module, arguments in flags.items()
        ]
        for service in running:
            typer.echo(json.dumps(service.ready))
        _wait(running, stop)


def _wait(running: list[ServiceProcess], stop: threading.Event) -> None:
    """Returns when `stop` is set; raises CommandError when a service ends before."""
    while not stop.wait(0.2):
        for service in running:
            if (code := service.process.poll()) is not None:
                raise CommandError(f"{service.module} ended with exit code {code}")


def _become(module: str, arguments: list[str]) -> None:
    _check_installed(module)
    # The same process, so that signals and the exit code are the service's own.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


def _check_installed(module: str) -> None:
    extra, packages = _NEEDS[module]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{module} needs {', '.join(missing)}: pip install 'sightline[{extra}]'")
