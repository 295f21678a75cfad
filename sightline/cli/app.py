"""The `sightline` command: `serve`, `up`, `log`, `infer`, `stats`, `health`, `export`, ...

Data goes to stdout, everything else to stderr; `--json` is for programs. An error that a person can
meet is one sentence and a hint on stderr, with exit code 1 (2 for a bad flag or setting).
"""

import typer

from servicekit import standard_streams, terminal
from servicekit.distribution import stranger
from servicekit.help import program

_SERVICES = "Services"
_DEVICE = "On the device"
_DATA = "What is logged"
_KEYS = "Models and keys"

app = program(
    "The wire between edge cameras and the cloud: log predictions, ask for them.",
    {
        "up": ("sightline.cli.serve:up", _SERVICES),
        "health": ("sightline.cli.read:health", _SERVICES),
        "doctor": ("sightline.cli.doctor:doctor", _SERVICES),
        "log": ("edge.commands.log:log", _DEVICE),
        "infer": ("edge.commands.infer:infer", _DEVICE),
        "stats": ("sightline.cli.read:stats", _DATA),
        "series": ("sightline.cli.figures:series", _DATA),
        "versions": ("sightline.cli.figures:versions", _DATA),
        "confidence": ("sightline.cli.figures:confidence", _DATA),
        "frame": ("sightline.cli.figures:frame", _DATA),
        "devices": ("sightline.cli.records:devices", _DATA),
        "ledger": ("sightline.cli.records:ledger", _DATA),
        "gaps": ("sightline.cli.records:gaps", _DATA),
        "rejections": ("sightline.cli.records:rejections", _DATA),
        "show": ("sightline.cli.records:show", _DATA),
        "tail": ("sightline.cli.tail:tail", _DATA),
        "sql": ("sightline.cli.sql:sql", _DATA),
        "export": ("sightline.cli.export:export", _DATA),
        "readmit": ("sightline.cli.readmit:readmit", _DATA),
        "backup": ("sightline.cli.backup:backup", _DATA),
        "restore": ("sightline.cli.backup:restore", _DATA),
        "serve": ("sightline.cli.serve:app", _SERVICES),
        "spool": ("edge.commands.spool:app", _DEVICE),
        "models": ("sightline.cli.models:app", _KEYS),
        "keys": ("sightline.cli.keys:app", _KEYS),
    },
)


def main(prog: str = "sightline") -> None:
    """Run the command line and end the process with its exit code.

    Args:
        prog: the program's name in --help and errors.
    """
    standard_streams.install()
    if message := stranger():
        typer.echo(f"warning: {message}", err=True)
    terminal.run(lambda: app(prog_name=prog), prog=prog)
