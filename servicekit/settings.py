"""Settings of a process: flags, environment, one TOML file, secret files, defaults.

Strongest first:

1. flags: `--grace-seconds 5`
2. environment: `SIGHTLINE_<PART>_GRACE_SECONDS=5`
3. the table `[<part>]` of a TOML file: `--config`, else `SIGHTLINE_CONFIG`, else
   `./sightline.toml` where that exists
4. secret files: a file in the directory `SIGHTLINE_SECRETS_DIR` that is named like the environment
   variable, in upper or lower case; its text, stripped, is the value
5. the default

Unknown flags, unknown TOML keys and unknown `SIGHTLINE_<PART>_*` variables are refused, with the
nearest right name. The variables that Kubernetes injects are excepted (`servicekit.variables`).
"""

import argparse
import difflib
import logging
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NoReturn, Self, TypeVar

import pydantic_settings
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from servicekit.addresses import public_address
from servicekit.distribution import version
from servicekit.variables import names_of_kubernetes

logger = logging.getLogger(__name__)

PARTS = ("console", "edge", "inference", "ingest")
"""Tables of a `sightline.toml`: one file can configure every part."""

SHARED = {"SIGHTLINE_CONFIG", "SIGHTLINE_SECRETS_DIR", "SIGHTLINE_API_KEYS_FILE"}
"""Variables of no part."""
_PREFIX = "SIGHTLINE_"
# Each part refuses unknown variables of its own; tests and installations read the others.
_READ_ELSEWHERE = (
    *(f"{_PREFIX}{part.upper()}_" for part in PARTS),
    "SIGHTLINE_TEST_",
    "SIGHTLINE_REQUIRE_",
)

BASIC: Final[dict[str, JsonValue]] = {"basic": True}
"""`json_schema_extra` of a setting that `--help` and the reference show in the first group. All the
others are in the group "Advanced"."""

S = TypeVar("S", bound="Settings")


class SettingsError(Exception):
    """An invalid setting. The message names the setting, its rule and its source."""


def _check_address(address: str) -> str:
    """Return the address if a gRPC server can listen on it or a client connect to it."""
    if re.fullmatch(r"unix:.+", address):
        return address
    match = re.fullmatch(r"(?:\[[0-9A-Za-z:.%]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if match is None or int(match[1]) > 65535:
        raise ValueError("must be host:port, [IPv6]:port or unix:path, with a port of 0 to 65535")
    return address


def _check_tcp_address(address: str) -> str:
    if address.startswith("unix:"):
        raise ValueError("must be host:port: HTTP is not served on unix sockets")
    return _check_address(address)


def _check_optional_tcp_address(address: str) -> str:
    return _check_tcp_address(address) if address else address


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _path_or_none(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be the path of a file or folder: a URL is not fetched")
    return _empty_is_none(value)


Address = Annotated[str, AfterValidator(_check_address)]
"""host:port, [IPv6]:port or unix:path."""
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Words; in flags, variables and secret files separated by commas, in TOML a list."""
OptionalPath = Annotated[Path | None, BeforeValidator(_path_or_none)]
"""A path; None or empty: not given."""
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_empty_is_none)]
"""A secret; None or empty: not given."""
TcpAddress = Annotated[str, AfterValidator(_check_tcp_address)]
"""host:port or [IPv6]:port."""
OptionalTcpAddress = Annotated[str, AfterValidator(_check_optional_tcp_address)]
"""host:port or [IPv6]:port; empty: not given."""


@dataclass(frozen=True)
class _Origin:
    """A source of values, and the description of a field's place in it."""

    source: PydanticBaseSettingsSource
    describe: Callable[[str], str]


class Settings(BaseSettings):
    """Base of every process's settings; `part` names the environment prefix and the TOML table.

    Build it with `load`. Keyword arguments of the constructor beat every other source.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
    )
    part: ClassVar[str]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if hasattr(cls, "part"):
            cls.model_config["env_prefix"] = f"SIGHTLINE_{cls.part.upper()}_"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of a plain constructor call: all but flags."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings, *(origin.source for origin in _ambient(cls, None)))


class ClientTlsSettings(Settings):
    """TLS settings of a client."""

    tls_ca_file: OptionalPath = Field(
        default=None,
        description="PEM certificates that sign the server's; not given: no TLS",
        json_schema_extra=BASIC,
    )
    tls_cert_file: OptionalPath = Field(
        default=None, description="PEM certificate chain of this client (mutual TLS)"
    )
    tls_key_file: OptionalPath = Field(default=None, description="PEM private key of tls_cert_file")

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        check_pair(self.tls_cert_file, self.tls_key_file)
        if self.tls_cert_file and not self.tls_ca_file:
            raise ValueError("tls_ca_file: must be given with tls_cert_file")
        return self


def check_pair(cert: Path | None, key: Path | None) -> None:
    """Raise ValueError if one of tls_cert_file and tls_key_file is given without the other."""
    if cert and not key:
        raise ValueError("tls_key_file: must be given with tls_cert_file")
    if key and not cert:
        raise ValueError("tls_cert_file: must be given with tls_key_file")


def is_basic(cls: type[Settings], name: str) -> bool:
    """Return True if a setting belongs to the short first group of `--help`, not to "Advanced"."""
    extra = cls.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("basic") is True


def load(cls: type[S], argv: Sequence[str] | None, *, prog: str) -> S:
    """Return the settings from every source.

    Args:
        cls: the settings class.
        argv: the flags, without the program's name; None: none are read (use as a library).
        prog: the program's name in --help, such as `python -m ingest_service`.

    Raises:
        SettingsError: a value, a file, a flag, a variable or a key that cannot be used.
        SystemExit: --help or --version was given, and has been printed.
    """
    flags, config = _parse(cls, argv or (), prog)
    source = EnvSettingsSource(cls)
    # Flags have the syntax of variables: lists with commas, JSON for what is nested.
    source.env_vars = {f"{cls.model_config['env_prefix']}{n}".lower(): v for n, v in flags.items()}
    origins = [_Origin(source, _flag), *_ambient(cls, config)]
    sources = tuple(origin.source for origin in origins)
    try:
        # pydantic-settings' own argument, which its constructor's types leave out.
        return cls(_build_sources=(sources, {}))  # type: ignore[call-arg]
    except ValidationError as error:
        # Not chained: pydantic's text contains the values, and some of them are secrets.
        raise SettingsError(
            "; ".join(_sentence(cls, item, origins) for item in error.errors(include_url=False))
        ) from None
    except pydantic_settings.SettingsError as error:
        raise SettingsError(str(error)) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see {self.prog} --help)")


def _parse(
    cls: type[Settings], argv: Sequence[str], prog: str
) -> tuple[dict[str, str], Path | None]:
    """Return the text of each setting that a flag gives, and the file of --config."""
    parser = _Parser(prog=prog, allow_abbrev=False, add_help=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--config", type=Path)
    for name, field in cls.model_fields.items():
        if field.annotation is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(_flag(name), dest=name, action=action, default=argparse.SUPPRESS)
        else:
            parser.add_argument(_flag(name), dest=name, action="append", default=argparse.SUPPRESS)
    parsed, unknown = parser.parse_known_args(list(argv))
    values = vars(parsed)
    config = values.pop("config")
    if values.pop("help"):
        # Typer and Rich take a tenth of a second to import, which a service does not need.
        from servicekit.help import print_help

        basic = [name for name in cls.model_fields if is_basic(cls, name)]
        print_help(cls, cls.part, basic, prog)
        raise SystemExit(0)
    if values.pop("version"):
        sys.stdout.write(f"sightline {version()}\n")
        raise SystemExit(0)
    if unknown:
        raise SettingsError(f"{_unknown_flag(unknown[0], parser)} (see {prog} --help)")
    return {name: _text(cls, name, value) for name, value in values.items()}, config


def _unknown_flag(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {public_address(word)!r}: settings are given as --name value"
    flag = word.partition("=")[0]
    known = [text for action in parser._actions for text in action.option_strings]  # noqa: SLF001
    return f"no such flag: {flag}{did_you_mean(flag, known)}"


def _text(cls: type[Settings], name: str, value: bool | list[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    is_list = any(isinstance(item, NoDecode) or item is NoDecode for item in _metadata(cls, name))
    return ",".join(value) if is_list else value[-1]


def _metadata(cls: type[Settings], name: str) -> list[Any]:
    return cls.model_fields[name].metadata


def did_you_mean(name: str, known: Iterable[str], limit: int = 1) -> str:
    """Return `, did you mean NAME?` with the nearest known names; empty: none is near."""
    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.7)
    return f", did you mean {' or '.join(near)}?" if near else ""


def unread_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the names of `SIGHTLINE_` variables that no part reads or refuses, sorted.

    Args:
        environment: variables by name.
    """
    injected = names_of_kubernetes(environment)
    return [
        name
        for name in sorted(environment)
        if name.upper().startswith(_PREFIX)
        and name.upper() not in SHARED  # case does not matter to pydantic-settings
        and not name.upper().startswith(_READ_ELSEWHERE)
        and name not in injected
    ]


def mistyped_variables(cls: type[Settings], environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each unread variable whose prefix is nearly that of a settings class.

    Args:
        cls: the settings class.
        environment: variables by name.
    """
    known = [f"{_PREFIX}{cls.part.upper()}_{name.upper()}" for name in cls.model_fields]
    parts = [part.upper() for part in PARTS]
    return [
        f"the variable {name} is set, and nothing reads it{did_you_mean(name.upper(), known)}"
        for name in unread_variables(environment)
        if difflib.get_close_matches(name.upper().split("_")[1], parts, n=1) == [cls.part.upper()]
    ]


def warn_of_mistyped_variables(cls: type[Settings]) -> None:
    """Log a warning for each of `mistyped_variables` in the environment of this process.

    An error would break users who have other `SIGHTLINE_` variables.
    """
    for sentence in mistyped_variables(cls, os.environ):
        logger.warning("settings: %s", sentence)


def _ambient(cls: type[Settings], config: Path | None) -> list[_Origin]:
    """Return the sources that need no flags, strongest first."""
    prefix = f"SIGHTLINE_{cls.part.upper()}_"
    _refuse_unknown_variables(cls, prefix)
    path = config or default_config()
    table = _table(path, cls.part) if path else {}
    secrets = _secrets_dir()
    return [
        _Origin(EnvSettingsSource(cls), lambda field: prefix + field.upper()),
        _Origin(InitSettingsSource(cls, table), lambda field: f"{field} of [{cls.part}] in {path}"),
        _Origin(
            SecretsSettingsSource(cls, secrets),
            lambda field: f"{prefix}{field.upper()} in {secrets}",
        ),
    ]


def _refuse_unknown_variables(cls: type[Settings], prefix: str) -> None:
    """Raise SettingsError: a variable of this part is no setting, as after a typing mistake."""
    known = {prefix + name.upper() for name in cls.model_fields}
    candidates = {n: v for n, v in os.environ.items() if n.upper().startswith(prefix)}
    injected = names_of_kubernetes(candidates)
    unknown = sorted(n for n in candidates if n.upper() not in known and n not in injected)
    if unknown:
        raise SettingsError(
            "; ".join(
                f"{name} is not a setting{did_you_mean(name.upper(), known) or ': unset it'}"
                for name in unknown
            )
        )


def default_config(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the TOML file that is read without `--config`; None: there is none.

    Args:
        environment: variables by name.
    """
    if named := environment.get("SIGHTLINE_CONFIG"):
        return Path(named)
    usual = Path("sightline.toml")
    return usual if usual.is_file() else None


def _table(path: Path, part: str) -> dict[str, Any]:
    """Return the part's table of the TOML file; empty if the file has none."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingsError(f"--config: {path} is not TOML: {error}") from error
    for name, table in tables.items():
        if name not in PARTS or not isinstance(table, dict):
            raise SettingsError(
                f"--config: {path} must hold only the tables {', '.join(PARTS)} (got {name!r})"
            )
    return dict(tables.get(part, {}))


def _secrets_dir() -> Path | None:
    named = os.environ.get("SIGHTLINE_SECRETS_DIR")
    if not named:
        return None
    if not Path(named).is_dir():
        raise SettingsError(f"SIGHTLINE_SECRETS_DIR: must be a directory (got {named!r})")
    return Path(named)


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _sentence(cls: type[Settings], error: ErrorDetails, origins: Sequence[_Origin]) -> str:
    """Return one validation error as: field: rule (got value; from place)."""
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not error["loc"]:  # a rule for several fields, which names them
        return rule
    field = str(error["loc"][0])
    place = next((o.describe(field) for o in origins if field in o.source()), "its default")
    if error["type"] == "missing":
        prefix = cls.model_config["env_prefix"]
        return f"{field}: must be given ({_flag(field)} or {prefix}{field.upper()})"
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(field, cls.model_fields)
        return f"{field}: is not a setting{hint} (from {place})"
    got = "" if _is_secret(cls, field) else f"got {_shown(error['input'])!r}; "
    return f"{'.'.join(map(str, error['loc']))}: {rule} ({got}from {place})"


def _shown(value: object) -> object:
    """Return a value that is refused, without the password of an address."""
    return public_address(value) if isinstance(value, str) else value


def _is_secret(cls: type[Settings], field: str) -> bool:
    return field in cls.model_fields and "SecretStr" in str(cls.model_fields[field].annotation)
