"""The `sightline` command: `serve`, `up`, `log`, `infer`, `stats`, `health`.

Data goes to stdout, everything else to stderr; `--json` is for programs. An error that a person can
meet is one sentence and a hint on stderr, with exit code 1 (2 for a bad flag or setting).
"""

import sys

import grpc
import typer

from servicekit.errors import Category, SightlineError, from_rpc_error
from servicekit.settings import SettingsError
from sightline_cli import ask, read, serve
from sightline_cli.processes import StartError

app = typer.Typer(
    help="The wire between edge cameras and the cloud: log predictions, ask for them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(serve.app, name="serve")
app.command("up")(serve.up)
app.command("log")(ask.log)
app.command("infer")(ask.infer)
app.command("stats")(read.stats)
app.command("health")(read.health)

_HINTS = {
    Category.NETWORK: "Is the service running there? `sightline health` tells.",
    Category.AUTH: "Check the API key (SIGHTLINE_EDGE_API_KEY) and the TLS files.",
    Category.TIMEOUT: "Give it more time with --timeout, or look at the service's load.",
    Category.SERVER: "The service's log says more.",
    Category.VALIDATION: "",
}


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        app()
    except SettingsError as error:
        _fail(str(error), 2)
    except StartError as error:
        _fail(str(error), 1)
    except SightlineError as error:
        _fail(f"{error} {_HINTS[error.category]}".rstrip(), 1)
    except grpc.RpcError as error:
        meant = from_rpc_error(error)
        _fail(f"{meant} {_HINTS[meant.category]}".rstrip(), 1)


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"sightline: {sentence}\n")
    sys.exit(code)
