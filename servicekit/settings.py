"""Settings of a process: flags, environment, one TOML file, secret files, defaults.

Strongest first:

1. flags: `--grace-seconds 5`
2. environment: `SIGHTLINE_<PART>_GRACE_SECONDS=5`
3. the table `[<part>]` of a TOML file: `--config`, else `SIGHTLINE_CONFIG`, else
   `./sightline.toml` where that exists
4. secret files: a file in the directory `SIGHTLINE_SECRETS_DIR` that is named like the environment
   variable, in upper or lower case; its text, stripped, is the value
5. the default

Unknown flags and unknown TOML keys are refused. Unknown environment variables are not: Kubernetes
puts `SIGHTLINE_INGEST_PORT` and the like into every pod beside a service `sightline-ingest`.
"""

import argparse
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar

import pydantic_settings
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

PARTS = ("edge", "inference", "ingest")
"""Tables that a `sightline.toml` may have: one file can serve every part."""

S = TypeVar("S", bound="Settings")


class SettingsError(Exception):
    """A setting that cannot be used. The message names it, its rule and where it came from."""


def _check_address(address: str) -> str:
    """Return the address if a gRPC server can listen on it or a client dial it."""
    if re.fullmatch(r"unix:.+", address):
        return address
    match = re.fullmatch(r"(?:\[[0-9A-Za-z:.%]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
    if match is None or int(match[1]) > 65535:
        raise ValueError("must be host:port, [IPv6]:port or unix:path, with a port of 0 to 65535")
    return address


def _check_optional_tcp_address(address: str) -> str:
    if address.startswith("unix:"):
        raise ValueError("must be host:port: HTTP is not served on unix sockets")
    return _check_address(address) if address else address


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


Address = Annotated[str, AfterValidator(_check_address)]
"""host:port, [IPv6]:port or unix:path."""
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Words; in flags, variables and secret files separated by commas, in TOML a list."""
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
"""A path; None or empty: not given."""
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_empty_is_none)]
"""A secret; None or empty: not given."""
OptionalTcpAddress = Annotated[str, AfterValidator(_check_optional_tcp_address)]
"""host:port or [IPv6]:port; empty: not given."""


@dataclass(frozen=True)
class _Origin:
    """A source of values and how to call the place that a field's value has in it."""

    source: PydanticBaseSettingsSource
    describe: Callable[[str], str]


class Settings(BaseSettings):
    """Base of every process's settings; `part` names the environment prefix and the TOML table.

    Build it with `load`. Keyword arguments of the constructor beat every other source.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
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
    """How a client trusts the server and shows who it is."""

    tls_ca_file: OptionalPath = Field(
        default=None, description="PEM certificates that sign the server's; not given: no TLS"
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


def load(cls: type[S], argv: Sequence[str] | None, *, prog: str) -> S:
    """Return the settings from every source.

    Args:
        cls: which settings.
        argv: the flags, without the program's name; None: none are read (use as a library).
        prog: the program's name in --help, such as `python -m ingest_service`.

    Raises:
        SettingsError: a value, a file, a flag or a key that cannot be used.
        SystemExit: --help was asked for, and has been printed.
    """
    parser = _Parser(prog=prog, description=(cls.__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"TOML file, table [{cls.part}] (default: ./sightline.toml if it exists)"
        " (env: SIGHTLINE_CONFIG)",
    )
    flags: CliSettingsSource[Any] = CliSettingsSource(cls, root_parser=parser)
    parsed = parser.parse_args(list(argv or ()))
    flags(parsed_args=parsed)
    origins = [_Origin(flags, _flag), *_ambient(cls, parsed.config)]
    sources = tuple(origin.source for origin in origins)
    try:
        # pydantic-settings' own argument, which its constructor's types leave out.
        return cls(_build_sources=(sources, {}))  # type: ignore[call-arg]
    except ValidationError as error:
        # Not chained: pydantic's own text repeats the values, and some of them are secrets.
        raise SettingsError(
            "; ".join(_sentence(cls, one, origins) for one in error.errors(include_url=False))
        ) from None
    except pydantic_settings.SettingsError as error:
        raise SettingsError(str(error)) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see {self.prog} --help)")


def _ambient(cls: type[Settings], config: Path | None) -> list[_Origin]:
    """Return the sources that need no flags, strongest first."""
    prefix = f"SIGHTLINE_{cls.part.upper()}_"
    path = config or _default_config()
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


def _default_config() -> Path | None:
    if named := os.environ.get("SIGHTLINE_CONFIG"):
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
    if not error["loc"]:  # a rule about several fields, which names them itself
        return rule
    field = str(error["loc"][0])
    place = next((o.describe(field) for o in origins if field in o.source()), "its default")
    if error["type"] == "missing":
        prefix = cls.model_config["env_prefix"]
        return f"{field}: must be given ({_flag(field)} or {prefix}{field.upper()})"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, cls.model_fields, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        return f"{field}: is not a setting{hint} (from {place})"
    got = "" if _is_secret(cls, field) else f"got {error['input']!r}; "
    return f"{'.'.join(map(str, error['loc']))}: {rule} ({got}from {place})"


def _is_secret(cls: type[Settings], field: str) -> bool:
    return field in cls.model_fields and "SecretStr" in str(cls.model_fields[field].annotation)
