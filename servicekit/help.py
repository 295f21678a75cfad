"""`--help` of every command and service in one style, and settings as options of a command.

A command's docstring is its help: one line that says what it does, an example, then the details.
"""

import inspect
import re
from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup, TyperOption

from servicekit.distribution import version

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings
    from typer._click.core import Command as AnyCommand
    from typer._click.core import Context  # what Typer's own classes declare
    from typer._click.parser import _OptionParser

ADVANCED = "Advanced"
"""Title of the second group of options."""
CONNECTION = "Connection"
"""Title of the group of options that say which service is asked, and how long."""
OUTPUT = "Output"
"""Title of the group of options that say what is printed."""

HELP_FLAGS = {"help_option_names": ["--help", "-h"]}
"""Settings of a program's context, which all its commands inherit."""
_OTHER_FLAGS = {"--ingest": "--ingest-target", "--inference": "--inference-target"}
"""Flags of one address, each with a flag that settings and earlier versions have for it."""
_ONLY_FLAGS = ("--target", "--address")
"""Flags that earlier versions have where a command asks only one of the services."""

_NO = "no_"  # begins the name of the parameter that turns a switch off
_TYPES: dict[object, str] = {
    int: "<int>",
    float: "<float>",
    str: "<str>",
    Path: "<path>",
}


class Command(TyperCommand):
    """A command whose help names the program that was typed."""

    def get_help(self, ctx: "Context") -> str:
        """Print the help of the command, and return its plain text."""
        self.help = with_program(self.help or "", ctx)
        return super().get_help(ctx)

    def make_parser(self, ctx: "Context") -> "_OptionParser":
        """Return the parser, which also takes flags that the help does not show."""
        parser = super().make_parser(ctx)
        options = {flag: option for option in self.get_params(ctx) for flag in option.opts}
        asked = [flag for flag in _OTHER_FLAGS if flag in options]
        for flag in asked:
            others = [_OTHER_FLAGS[flag], *(_ONLY_FLAGS if len(asked) == 1 else ())]
            unknown = [other for other in others if other not in options]
            option = options[flag]
            parser.add_option(cast("TyperOption", option), unknown, option.name)
        return parser


class Group(TyperGroup):
    """A group of commands whose help names the program that was typed."""

    def get_help(self, ctx: "Context") -> str:
        """Print the help of the group, and return its plain text."""
        self.help = with_program(self.help or "", ctx)
        return super().get_help(ctx)


def with_program(text: str, context: "Context") -> str:
    """Return a help text with one line per paragraph and the program's own name for `sightline`."""
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))
    root = context.find_root()
    commands = getattr(root.command, "commands", ())
    return re.sub(
        r"\bsightline (?=([\w-]+))",
        lambda match: f"{root.info_name} " if match[1] in commands else match[0],
        text,
    )


def print_version(wanted: bool) -> None:
    """Print the version and end the program: the callback of `--version`."""
    if wanted:
        typer.echo(f"sightline {version()}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", help="Print the version and exit.", callback=print_version, is_eager=True
    ),
]
"""Annotation of the option `--version`."""


class _Imported(UserDict[str, "tuple[str, str | None] | AnyCommand"]):
    """Commands and groups by name, each imported when it is looked at."""

    def __getitem__(self, name: str) -> "AnyCommand":
        found = self.data[name]
        if isinstance(found, tuple):
            found = self.data[name] = _imported(name, *found)
        return found


def _imported(name: str, place: str, panel: str | None) -> "AnyCommand":
    module, _, attribute = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    parent = typer.Typer()
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name, rich_help_panel=panel)
    else:
        parent.command(name, cls=Command, rich_help_panel=panel)(found)
    return typer.main.get_group(parent).commands[name]


def program(text: str, commands: Mapping[str, tuple[str, str | None]]) -> typer.Typer:
    """Return the application of a program: groups and commands in one style, with `--version`.

    A command is imported when it is run, so that it waits for no packages of the others; all are
    when the program's own help is printed.

    Args:
        text: what the program is, in one line.
        commands: by name, the function or `typer.Typer` as `module:attribute`, and the title of its
            group in the help; None: the program has no such groups.
    """

    class Program(Group):
        """The program's commands, in place of those that Typer has collected: none."""

        def __init__(self, **arguments: object) -> None:
            super().__init__(**arguments)  # type: ignore[arg-type] # as Typer calls its own class
            self.commands = cast("MutableMapping[str, AnyCommand]", _Imported(commands))

    app = typer.Typer(
        cls=Program,
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=HELP_FLAGS,
    )

    @app.callback(help=text)
    def root(version: Version = False) -> None:
        del version

    return app


def with_settings(
    cls: "type[BaseSettings]", without: Collection[str], hidden: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command each setting as an option of the group "Advanced".

    The command gets the texts of those that are given as the keyword argument `advanced`, by name.

    Args:
        cls: the settings class.
        without: settings that the command has options of the same name for.
        hidden: settings that it has options of another name for: the help does not show their own.
    """
    names = [name for name in cls.model_fields if name not in without]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.name != "advanced"]
        parameters += [
            p for name in names for p in _parameters(cls, name, ADVANCED, hidden=name in hidden)
        ]

        def command(**options: object) -> None:
            advanced = {}
            for name in names:
                value = options.pop(name)
                if options.pop(_NO + name, None):
                    value = False
                if value is not None:
                    advanced[name] = str(value).lower() if isinstance(value, bool) else value
            function(**options, advanced=advanced)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        _sign(command, parameters)
        return command

    return decorate


def print_help(cls: "type[BaseSettings]", part: str, basic: Collection[str], prog: str) -> None:
    """Print the help of a service: its settings, the basic ones first.

    Args:
        cls: the settings class.
        part: the service's table in the TOML file, such as `ingest`.
        basic: settings of the first group; all others are in the group "Advanced".
        prog: the program's name, such as `sightline serve ingest`.
    """
    from rich.markup import escape

    config = Annotated[
        Path | None,
        typer.Option(
            help=f"TOML file, table {escape(f'[{part}]')}; not given: the variable"
            " SIGHTLINE_CONFIG, or ./sightline.toml if it exists."
        ),
    ]
    advanced = [name for name in cls.model_fields if name not in basic]
    parameters = [
        *(p for name in basic for p in _parameters(cls, name, None)),
        _parameter("config", config, None),
        _parameter("version", Version, False),
        *(p for name in advanced for p in _parameters(cls, name, ADVANCED)),
    ]

    def command(**_: object) -> None: ...

    _sign(command, parameters)
    text = inspect.cleandoc(cls.__doc__ or "").replace(f"sightline serve {part}", prog)
    prefix = cls.model_config.get("env_prefix", "")
    text += f"\n\nEach flag is also a variable: {prefix}LISTEN=127.0.0.1:0 is --listen 127.0.0.1:0."
    app = typer.Typer(add_completion=False, context_settings=HELP_FLAGS)
    app.command(cls=Command, help=text)(command)
    typer.main.get_command(app).main(["--help"], prog_name=prog, standalone_mode=False)


def _sign(function: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Give a function the parameters that Typer reads."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def _parameter(name: str, annotation: object, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _parameters(
    cls: "type[BaseSettings]", name: str, panel: str | None, *, hidden: bool = False
) -> Iterator[inspect.Parameter]:
    """Yield the parameter of a setting; of a switch a second one, hidden, that turns it off."""
    from rich.markup import escape

    field = cls.model_fields[name]
    flag = "--" + name.replace("_", "-")
    text = escape(_capital(field.description or ""))
    if field.annotation is not bool:
        option = typer.Option(
            flag,
            metavar=_type_name(field.annotation),
            help=f"{text}.{_choices(field.annotation)}{_default(field)}",
            rich_help_panel=panel,
            hidden=hidden,
        )
        yield _parameter(name, Annotated[str | None, option], None)
        return
    off = f"--no-{flag.removeprefix('--')}"
    on = typer.Option(flag, help=f"{text}; {off}: no.{_default(field)}", rich_help_panel=panel)
    yield _parameter(name, Annotated[bool | None, on], None)
    hidden = typer.Option(off, help=f"Turn {flag} off.", hidden=True)
    yield _parameter(_NO + name, Annotated[bool | None, hidden], None)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _note(name: str, value: str) -> str:
    from rich.markup import escape

    return escape(f"({name}: {value})")


def _default(field: "FieldInfo") -> str:
    value = field.default
    if field.default_factory is not None or field.is_required() or value is None:
        return ""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return " " + _note("default", text) if text else ""


def _type_name(annotation: object) -> str:
    """Return how `--help` names the type of a value, such as `<int>` or `<choice>`."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return _type_name(next(a for a in get_args(annotation) if a is not NoneType))
    if get_origin(annotation) is Literal:
        return "<choice>"
    if get_origin(annotation) is tuple:
        return "<list>"
    if getattr(annotation, "__name__", "") == "SecretStr":
        return "<secret>"
    return _TYPES.get(annotation, "<text>")


def _choices(annotation: object) -> str:
    """Return the words that a value may be; empty: any."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) is not Literal:
        return ""
    return " " + _note("one of", ", ".join(filter(None, get_args(annotation))))
