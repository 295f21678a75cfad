"""A plain HTTP client: nothing between a test and what the console sends."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 30.0
"""Time that a test waits for an answer, s."""


@dataclass(frozen=True)
class Answer:
    """The answer of one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The reason of an error."""
        return str(self.json["reason"])


@dataclass
class Browser:
    """A client of one console, with headers that each of its requests has."""

    address: str
    headers: Mapping[str, str]

    def get(self, path: str, **headers: str) -> Answer:
        """Send a GET; `_` in the name of a header is `-`."""
        return self.send("GET", path, None, **headers)

    def post(self, path: str, body: object = None, **headers: str) -> Answer:
        """Send a POST; a body that is not bytes becomes JSON."""
        return self.send("POST", path, body, **headers)

    def send(self, method: str, path: str, body: object, **headers: str) -> Answer:
        """Send a request on a connection of its own."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, data, {**self.headers, **named})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    @contextmanager
    def sending(self, path: str, body: bytes, kind: str) -> Iterator[None]:
        """Send a POST and do not wait for its answer; leaving the block closes the connection."""
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            connection.request("POST", path, body, {**self.headers, "Content-Type": kind})
            yield
        finally:
            connection.close()

    @contextmanager
    def following(self, path: str, **headers: str) -> Iterator["Events"]:
        """Follow an event stream; leaving the block closes the connection."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            connection.request("GET", path, None, {**self.headers, **named})
            yield Events(connection.getresponse())
        finally:
            connection.close()


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    kind: str
    token: str
    data: Any


class Events:
    """The events of a stream, as they come."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response
        self.status = response.status

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        while line := self.response.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                yield Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
                fields = {}


def form(*files: tuple[str, str, bytes], **fields: str) -> tuple[bytes, str]:
    """Return the body of a form and its content type.

    Args:
        files: name of the field, name of the file, content.
        fields: other fields.
    """
    edge = "sightline-edge"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts += [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'.encode()
        + b"Content-Type: image/png\r\n\r\n"
        + data
        + b"\r\n"
        for name, file, data in files
    ]
    return b"".join([*parts, f"--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"
