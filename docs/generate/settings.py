"""The reference of settings, made from the settings classes."""

from collections.abc import Iterator

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from console_service.settings import ConsoleSettings
from docs.generate.markdown import code, table
from edge.settings import EdgeSettings
from inference_service.settings import InferenceSettings
from ingest_service.settings import IngestSettings
from servicekit.server_settings import ServerSettings
from servicekit.settings import Settings

INTRO = """# Settings

This page lists every setting of the edge node, of both services and of the console, with its
default and its bounds. It is made from the code.

A setting `name` of a part (`edge`, `ingest`, `inference` or `console`) can be given in four ways.
The first of them that is there counts:

1. a flag, `--name value`, with `-` for `_`; a flag that is on or off is `--name` or `--no-name`
2. the environment variable `SIGHTLINE_<PART>_<NAME>`
3. a line `name = value` in the table `[<part>]` of a TOML file: `--config FILE`, else the file that
   `SIGHTLINE_CONFIG` names, else `./sightline.toml`
4. a file in the folder `SIGHTLINE_SECRETS_DIR` that is called like the variable, in upper or lower
   case; its text is the value

Lists are separated by commas in flags, variables and files, and are lists in TOML. An unknown flag,
an unknown variable of the part or an unknown line of the TOML file is refused.
"""

_BOUNDS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
_LENGTHS = {MinLen: "at least", MaxLen: "at most"}


def page() -> str:
    """Return the page."""
    own = (IngestSettings, InferenceSettings)
    shared = [
        name
        for name, field in ServerSettings.model_fields.items()
        if all(_row(name, cls.model_fields[name]) == _row(name, field) for cls in own)
    ]
    parts = [
        INTRO,
        *section("Edge node", "edge", "", EdgeSettings, list(EdgeSettings.model_fields)),
    ]
    both = "Both services have these settings, each under its own variable."
    parts += section("Both services", "<part>", both, ServerSettings, shared)
    for title, cls in (("Ingest service", own[0]), ("Inference service", own[1])):
        names = [name for name in cls.model_fields if name not in shared]
        parts += section(title, cls.part, "", cls, names)
    parts += section("Console", "console", "", ConsoleSettings, list(ConsoleSettings.model_fields))
    return "\n\n".join(part for part in parts if part) + "\n"


def section(
    title: str, part: str, text: str, cls: type[Settings], names: list[str]
) -> Iterator[str]:
    """Yield the section of some settings: in two groups where some of them are basic."""
    yield f"## {title}"
    yield text
    yield f"Variables: `SIGHTLINE_{part.upper()}_<NAME>`. Table in `sightline.toml`: `[{part}]`."
    basic = [name for name in names if is_basic(cls.model_fields[name])]
    groups = [("first settings", basic), ("advanced", [n for n in names if n not in basic])]
    for heading, group in groups if basic else [("", names)]:
        yield f"### {title}: {heading}" if heading else ""
        rows = [_row(name, cls.model_fields[name]) for name in group]
        yield table(("setting", "default", "what it sets"), rows)


def is_basic(field: FieldInfo) -> bool:
    """Return True if a setting belongs to the short first group of `--help` and of this page."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("basic") is True


def _row(name: str, field: FieldInfo) -> tuple[str, str, str]:
    bounds = ", ".join(_bounds(field))
    about = f"{field.description}. {bounds[:1].upper()}{bounds[1:]}{'.' if bounds else ''}"
    return code(name), default(field), about


def _bounds(field: FieldInfo) -> Iterator[str]:
    for rule in field.metadata:
        for kind, word in _BOUNDS.items():
            if isinstance(rule, kind):
                yield f"{word} {getattr(rule, kind.__name__.lower()):,}".replace(",", " ")
        for length, word in _LENGTHS.items():
            if isinstance(rule, length):
                size = getattr(rule, "min_length" if length is MinLen else "max_length")
                yield f"{word} {size} long"


def default(field: FieldInfo) -> str:
    """Return how a default is shown; nothing for one that is empty or depends on the machine."""
    value = field.default
    if value is PydanticUndefined or value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, tuple):
        return code(",".join(map(str, value)))
    return code(str(value))
