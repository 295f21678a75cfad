"""The command line of the edge part: `python -m edge --help`."""

from servicekit import terminal
from servicekit.help import program

_PROG = "python -m edge"

app = program(
    "Detect objects in images and log them, or ask the inference service about images.",
    {
        "log": ("edge.commands.log:log", None),
        "infer": ("edge.commands.infer:infer", None),
        "doctor": ("edge.commands.doctor:doctor", None),
        "spool": ("edge.commands.spool:app", None),
    },
)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    terminal.run(lambda: app(prog_name=_PROG), prog=_PROG)


if __name__ == "__main__":
    main()
