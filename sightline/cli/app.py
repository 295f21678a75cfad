"""The `sightline` command: `serve`, `up`, `log`, `infer`, `stats`, `health`, `export`, ...

Data goes to stdout, everything else to stderr; `--json` is for programs. An error that a person can
meet is one sentence and a hint on stderr, with exit code 1 (2 for a bad flag or setting).
"""

from collections.abc import Callable

import typer

from edge.commands import infer, log, spool
from edge.commands.doctor import doctor
from servicekit import standard_streams, terminal
from servicekit.distribution import stranger
from servicekit.help import Command, program
from sightline.cli import backup, export, keys, models, read, readmit, serve

_SERVICES = "Services"
_DEVICE = "On the device"
_DATA = "What is logged"
_KEYS = "Models and keys"

app = program("The wire between edge cameras and the cloud: log predictions, ask for them.")
app.add_typer(serve.app, name="serve", rich_help_panel=_SERVICES)
_COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("up", serve.up, _SERVICES),
    ("health", read.health, _SERVICES),
    ("doctor", doctor, _SERVICES),
    ("log", log.log, _DEVICE),
    ("infer", infer.infer, _DEVICE),
    ("stats", read.stats, _DATA),
    ("export", export.export, _DATA),
    ("readmit", readmit.readmit, _DATA),
    ("backup", backup.backup, _DATA),
    ("restore", backup.restore, _DATA),
)
for _name, _function, _panel in _COMMANDS:
    app.command(_name, cls=Command, rich_help_panel=_panel)(_function)
app.add_typer(spool.app, name="spool", rich_help_panel=_DEVICE)
app.add_typer(models.app, name="models", rich_help_panel=_KEYS)
app.add_typer(keys.app, name="keys", rich_help_panel=_KEYS)


def main(prog: str = "sightline") -> None:
    """Run the command line and end the process with its exit code.

    Args:
        prog: the program's name in --help and errors.
    """
    standard_streams.install()
    if message := stranger():
        typer.echo(f"warning: {message}", err=True)
    terminal.run(lambda: app(prog_name=prog), prog=prog)
