"""`sightline keys`: creates, lists, rotates and revokes API keys in the file of the servers."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, overload

import typer
from rich.console import Console
from rich.table import Table

from edge.commands.options import Json
from servicekit.auth.api_keys import ApiKey
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile, KeyFileError
from servicekit.help import Command, Group
from servicekit.terminal import CommandError, UsageError

app = typer.Typer(
    cls=Group,
    help="API keys. Servers with --api-keys-file use them within a second, without a restart.",
    no_args_is_help=True,
)

File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar="SIGHTLINE_API_KEYS_FILE",
        help="The services' --api-keys-file; created with the first key.",
    ),
]

_FILE = Path("sightline-keys.db")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@app.command("create", cls=Command)
def create(
    name: Annotated[str, typer.Argument(help="Name of its caller, such as the device's.")],
    file: File = _FILE,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Device it may log and read as, exact or prefix*; default: NAME."),
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="Permission; may be given more than once; default: log and infer."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Lifetime: 30m, 12h, 90d; default: no end.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it. It is never shown again.

    Example: sightline keys create gate-1
    """
    try:
        text, key = KeyFile(file).create(
            name,
            devices=device or [name],
            scopes=scope or [Scope.LOG, Scope.INFER],
            expires_at=_end(expires),
        )
    except KeyFileError as error:
        raise CommandError(str(error)) from error
    _show_once(text, key, as_json=as_json)


@app.command("rotate", cls=Command)
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The old key's id.")],
    file: File = _FILE,
    old_ends_in: Annotated[
        str, typer.Option(help="Time that the old key still works: 30m, 12h, 90d.")
    ] = "1d",
    expires: Annotated[
        str | None, typer.Option(help="Lifetime of the new key: 30m, 12h, 90d; default: no end.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replace a key by one with the same permissions and print it. It is never shown again.

    Example: sightline keys rotate 0123456789ab --old-ends-in 12h

    The old key goes on working for a while, so that the device has time to get the new one.
    """
    ends_at = _end(old_ends_in, "--old-ends-in")
    try:
        text, key = KeyFile(file).rotate(key_id, old_ends_at=ends_at, expires_at=_end(expires))
    except KeyFileError as error:
        raise CommandError(str(error)) from error
    _show_once(text, key, as_json=as_json)


@app.command("list", cls=Command)
def list_(file: File = _FILE, as_json: Json = False) -> None:
    """List the keys, without their secrets.

    Example: sightline keys list --json
    """
    try:
        keys = KeyFile(file).all()
    except KeyFileError as error:
        raise CommandError(str(error)) from error
    if as_json:
        typer.echo(json.dumps([_public(key) for key in keys]))
    else:
        _print(keys)


@app.command("revoke", cls=Command)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], file: File = _FILE
) -> None:
    """Revoke a key for good.

    Example: sightline keys revoke 0123456789ab
    """
    try:
        changed = KeyFile(file).revoke(key_id)
    except KeyFileError as error:
        raise CommandError(str(error)) from error
    typer.echo(f"{key_id} is revoked" if changed else f"{key_id} was revoked already", err=True)


def _show_once(text: str, key: ApiKey, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": text, **_public(key)}))
        return
    typer.echo(text)
    hint = f"Keep it: it is never shown again. `sightline keys revoke {key.id}` revokes it."
    typer.echo(hint, err=True)


@overload
def _end(period: str, option: str = ...) -> datetime: ...
@overload
def _end(period: None, option: str = ...) -> None: ...
def _end(period: str | None, option: str = "--expires") -> datetime | None:
    """Return the end of a key that is created now. Raises UsageError: it is not a period."""
    if period is None:
        return None
    parts = re.fullmatch(r"([1-9]\d{0,5})([mhd])", period)
    if parts is None:
        raise UsageError(f"{option}: must be like 30m, 12h or 90d (got {period!r})")
    return datetime.now(UTC) + timedelta(**{_UNITS[parts[2]]: int(parts[1])})


def _status(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "active"


def _public(key: ApiKey) -> Mapping[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "devices": list(key.devices),
        "scopes": list(key.scopes),
        "status": _status(key),
        "created_at": key.created_at.isoformat(),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }


def _print(keys: list[ApiKey]) -> None:
    table = Table()
    for title in ("id", "name", "devices", "scopes", "status", "created", "expires"):
        table.add_column(title, no_wrap=title == "id")
    for key in keys:
        table.add_row(
            key.id,
            key.name,
            " ".join(key.devices),
            " ".join(key.scopes),
            _status(key),
            f"{key.created_at:%Y-%m-%d}",
            f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "never",
        )
    Console().print(table)
