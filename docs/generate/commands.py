"""The reference of the command line, made from its typer application."""

from collections.abc import Iterator

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from docs.generate.markdown import code, paragraphs, table
from sightline.cli.app import app

INTRO = """# Command line

This page lists every command of `sightline` with its arguments and options. It is made from the
code; `sightline COMMAND --help`, or `-h`, prints the same.

Data goes to stdout and everything else to stderr. `--json` prints JSON for programs. The exit code
is 0 for success, 1 for an error and 2 for a wrong flag or setting.

Commands that ask a service take its address as `--ingest` or `--inference`; not given, it is that
of the settings `ingest_target` and `inference_target`. `--ingest-target` and `--inference-target`,
the flags of the settings, do the same. Where a command asks one service only, so do the `--target`
and `--address` of earlier versions.
"""


def page() -> str:
    """Return the page."""
    return "\n\n".join([INTRO, *_group(typer.main.get_group(app), "sightline", 2)]) + "\n"


def _group(group: TyperGroup, path: str, level: int) -> Iterator[str]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield f"{'#' * level} {path} {name}"
        yield paragraphs(_escaped(command.help or ""))
        if isinstance(command, TyperGroup):
            yield from _group(command, f"{path} {name}", level + 1)
        elif isinstance(command, TyperCommand):
            yield from _command(command, f"{path} {name}")


def _command(command: TyperCommand, path: str) -> Iterator[str]:
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    options = [
        one
        for one in command.params
        if isinstance(one, TyperOption) and one.name != "help" and not one.hidden
    ]
    usage = [path, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)]
    yield f"```text\n{' '.join(usage)}\n```"
    if path.startswith("sightline serve "):
        part = path.rpartition(" ")[2]
        title = part if part == "console" else f"{part} service"
        anchor = title.replace(" ", "-")
        yield f"Its options are the [settings of the {title}](settings.md#{anchor})."
    rows = [(code(_argument(one)), "", _escaped(one.help or "")) for one in arguments]
    rows += [_option(one) for one in options]
    if rows:
        yield table(("argument or option", "default", "what it is"), rows)


def _option(option: TyperOption) -> tuple[str, str, str]:
    default = option.default
    is_set = isinstance(default, str | int | float) and default not in ("", False)
    names = ", ".join(map(code, (*option.opts, *option.secondary_opts)))
    return names, code(str(default)) if is_set else "", _escaped(option.help or "")


def _argument(argument: TyperArgument) -> str:
    return (argument.metavar or argument.name or "").strip("{}.").upper()


def _escaped(text: str) -> str:
    """Return a help text without what Markdown or a terminal would take as its own."""
    return text.replace("\b", "").replace("\\[", "[").replace("<", "&lt;")
