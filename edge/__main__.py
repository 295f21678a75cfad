"""The command line of the edge part: `python -m edge --help`."""

from edge.commands import infer, log, spool
from edge.commands.doctor import doctor
from servicekit import terminal
from servicekit.help import Command, program

_PROG = "python -m edge"

app = program("Detect objects in images and log them, or ask the inference service about images.")
app.command("log", cls=Command)(log.log)
app.command("infer", cls=Command)(infer.infer)
app.command("doctor", cls=Command)(doctor)
app.add_typer(spool.app, name="spool")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    terminal.run(lambda: app(prog_name=_PROG), prog=_PROG)


if __name__ == "__main__":
    main()
