"""The `sightline` command: `serve`, `up`, `log`, `infer`, `stats`, `health`, `export`, ...

Data goes to stdout, everything else to stderr; `--json` is for programs. An error that a person can
meet is one sentence and a hint on stderr, with exit code 1 (2 for a bad flag or setting).
"""

import typer

from edge.commands import infer, log
from edge.commands import spool as spool
from edge.commands.doctor import doctor
from servicekit import terminal
from servicekit.distribution import stranger
from sightline.cli import backup, export, keys, models, read, readmit, serve

app = typer.Typer(
    help="The wire between edge cameras and the cloud: log predictions, ask for them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(serve.app, name="serve")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.command("up")(serve.up)
app.command("log")(log.log)
app.command("infer")(infer.infer)
app.command("doctor")(doctor)
app.add_typer(spool.app, name="spool")
app.command("stats")(read.stats)
app.command("export")(export.export)
app.command("readmit")(readmit.readmit)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("health")(read.health)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if message := stranger():
        typer.echo(f"warning: {message}", err=True)
    terminal.run(app, prog="sightline")
