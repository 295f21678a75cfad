"""The command line of the edge part: `python -m edge --help`."""

import typer

from edge.commands import infer, log
from edge.commands import spool as spool
from edge.commands.doctor import doctor
from servicekit import terminal

app = typer.Typer(
    help="Detect objects in images and log them, or ask the inference service about images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("log")(log.log)
app.command("infer")(infer.infer)
app.command("doctor")(doctor)
app.add_typer(spool.app, name="spool")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    terminal.run(app, prog="python -m edge")


if __name__ == "__main__":
    main()
