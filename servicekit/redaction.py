"""Removal of secrets from texts that leave this machine, such as those of a support bundle.

A `Redactor` works in two ways, because neither is enough alone. It removes the secrets that this
process knows, wherever they stand: in settings, in the environment, in the folder of secrets, in
the files of keys. And it removes what looks like a secret: passwords of URLs, API keys, tokens,
private keys, and values whose name says that they are secret.
"""

import base64
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from pydantic import JsonValue, SecretStr

from servicekit.addresses import without_secrets
from servicekit.settings import PARTS, Settings, default_config

MASK: Final = "***"
"""Text that stands for a secret."""
_SHORTEST: Final = 4  # shorter ones are in every text; patterns remove them where they are named
_SHORTEST_WORD: Final = 8  # of a secret with spaces, such as `Bearer ...`, and of a line of PEM
_LARGEST_FILE: Final = 64 * 1024
_NO_SECRETS = frozenset({"true", "false", "none", "null"})
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASS|CREDENTIAL|AUTH|COOKIE|HEADERS", re.IGNORECASE)
_NAME_OF_PLACE = re.compile(r"(FILE|DIR|PATH|SOCK|HOME)$", re.IGNORECASE)

_NAME = (
    r"(?:pass(?:word|wd|phrase|code)|(?<![a-z])pass(?![a-z])|(?<![a-z])pwd|(?<![a-z])psw|secret"
    r"|token|api[-_]?keys?|access[-_]?key|private[-_]?key|credentials?)"
)
_VALUE = (
    r"""(?:"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|\\+"(?:(?!\\+").)*(?:\\+")?"""
    r"""|[^\s,;&"'})\]]+)"""
)
_PATTERNS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        # A private key, also the first or the last part of one.
        (r"-----BEGIN[A-Z0-9 ]* PRIVATE KEY-----.*?(?:-----END[A-Z0-9 ]*-----|\Z)", MASK),
        (r"\A(?:[A-Za-z0-9+/=\s]|\\n)*-----END[A-Z0-9 ]* PRIVATE KEY-----", MASK),
        # Keys of this program, of which the id is public, and JSON web tokens.
        (r"(slk_[0-9a-f]{12}_)[\w-]+", rf"\1{MASK}"),
        (r"eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)*", MASK),
        # Headers.
        (r"\b(bearer|basic|digest)(\s+|%20|\+)[^\s\"',;]+", rf"\1\2{MASK}"),
        (r"(\b(?:proxy-)?authorization\\*[\"']?\s*[:=]\s*\\*[\"']?)[^\"'\n]+", rf"\1{MASK}"),
        (r"(\b(?:set-)?cookie\\*[\"']?\s*[:=]\s*\\*[\"']?)[^\"'\n]+", rf"\1{MASK}"),
        # User and password before a host: in JSON's and in a URL's escapes, with a space in it,
        # without a scheme, and as ultralytics writes a URL.
        (r"(:\\/\\/)[^\s'\"<>]*@", r"\1"),
        (r"(%3A%2F%2F)[^\s'\"<>]*?%40", r"\1"),
        (r"(://)[^/\s:@'\"]+:(?!\d+[\s/,])[^/\n'\"<>@]*@", r"\1"),
        (r"\b[\w.+%-]+:[^\s/@:'\"]+@(?=[\w\[])", ""),
        (r"\b((?:https?|ftp|rtmp\w{0,2}|rtp|rtsps?|srt|tcp|tls|udp))_(?:__|//)\S+", r"\1 stream"),
        # Options and values that are named like a secret, and those of curl.
        (r"((?<!\S)(?:-u|--user)[\s=]+)\S+:\S+", rf"\1{MASK}"),
        (rf"(--[\w-]*{_NAME}[\w-]*\s+){_VALUE}", rf"\1{MASK}"),
        (rf"({_NAME}\w*\\*[\"']?\s*[=:]\s*){_VALUE}", rf"\1{MASK}"),
    )
)
_USER_INFO = re.compile(r"://([^\s'\"<>]*)@")


class Redactor:
    """A remover of secrets.

    Args:
        known: secrets to remove wherever they stand, also percent-encoded and as JSON has them.
            Those of fewer than four characters are ignored.

    Example:
        >>> from servicekit.redaction import Redactor
        >>> redactor = Redactor(["hunter2"])
        >>> redactor.text("rtsp://a:b@10.0.0.7/live: hunter2 was refused, token=abc")
        'rtsp://10.0.0.7/live: *** was refused, token=***'
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for secret in known for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return without_secrets(text)

    def json(self, value: JsonValue) -> JsonValue:
        """Return a value of JSON whose texts, names included, have no secrets."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.json(one) for one in value]
            case dict():
                return {self.text(name): self.json(one) for name, one in value.items()}
            case _:
                return value


def known_secrets(
    settings: Iterable[Settings], environment: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Yield the secrets that this process can find, for a `Redactor`.

    They are those of settings, of variables and keys of the TOML file that are named like a secret,
    of the headers of OpenTelemetry, of URLs, of the folder of secrets, and the content of the files
    of keys. What cannot be read is left out.

    Args:
        settings: settings that are loaded; those of the TOML file and the environment are found
            even if they are refused.
        environment: variables by name.
    """
    for one in settings:
        for name, value in one:
            if isinstance(value, SecretStr):
                yield value.get_secret_value()
            elif isinstance(value, Path) and is_key_file(name):
                yield from _of_key_file(value)
            else:
                yield from _of_urls(str(value))
    for name, text in environment.items():
        yield from _of_named(name, text)
    yield from _of_toml(environment)
    if folder := environment.get("SIGHTLINE_SECRETS_DIR"):
        yield from _of_folder(Path(folder))


def is_key_file(name: str) -> bool:
    """Return True if a setting is the path of a file with keys, such as `tls_key_file`."""
    return name.endswith("_file") and "key" in name


def _of_named(name: str, text: str) -> Iterator[str]:
    yield from _of_urls(text)
    if not _SECRET_NAME.search(name):
        return
    if _NAME_OF_PLACE.search(name):
        if is_key_file(name.lower()):
            yield from _of_key_file(Path(text))
        return
    yield text
    if "HEADERS" in name.upper():  # name=value,name=value
        for header in text.split(","):
            yield header.partition("=")[2]


def _of_urls(text: str) -> Iterator[str]:
    """Yield the passwords of the URLs in a text; a user without one is a token."""
    for user_info in _USER_INFO.findall(text):
        user, separator, password = user_info.partition(":")
        yield password if separator else user
        if separator:
            yield base64.b64encode(unquote(user_info).encode()).decode()


def _of_key_file(path: Path) -> Iterator[str]:
    """Yield the content of a file of keys, and its path, which says where to look for them."""
    yield from _of_file(path)
    if len(str(path)) >= _SHORTEST_WORD:
        yield str(path)


def _of_file(path: Path) -> Iterator[str]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return
        text = path.read_bytes().decode()
    except (OSError, ValueError):  # a database of hashes is no text
        return
    yield text.strip()


def _of_folder(folder: Path) -> Iterator[str]:
    """Yield the secrets of a folder; a setting that is no secret may be in it as well."""
    own = tuple(f"sightline_{part}_" for part in PARTS)
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return
    for file in files:
        name = file.name.lower()
        if not name.startswith(own) or (_SECRET_NAME.search(name) and not name.endswith("_file")):
            yield from _of_file(file)


def _of_toml(environment: Mapping[str, str]) -> Iterator[str]:
    path = default_config(environment)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return
    for table in tables.values():
        for name, value in table.items() if isinstance(table, dict) else ():
            yield from _of_named(name, str(value))


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms in which a text may hold a secret."""
    for form in (secret, unquote(secret)):
        whole = form.strip()
        parts = whole.split()
        words = {part for part in parts if len(part) >= _SHORTEST_WORD and "-----" not in part}
        for word in {whole, *words}:
            if len(word) >= _SHORTEST and word.lower() not in _NO_SECRETS:
                yield from (word, quote(word, safe=""), json.dumps(word)[1:-1], repr(word)[1:-1])
