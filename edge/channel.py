"""How a device reaches a service: one place for TLS, the credential and keepalive options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from servicekit.addresses import stays_here
from servicekit.errors import SightlineError

# A path that has gone silent is noticed within 30 s, although TCP alone would take a quarter of an
# hour, and after an outage the next attempt is never more than five seconds away (gRPC's own
# default is two minutes).
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    # A ping waits behind the 64 KiB that may be on their way: 20 s are enough at 4 kB/s.
    ("grpc.keepalive_timeout_ms", 20_000),
    # Without it gRPC takes a minute, whatever the keepalive timeout is.
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Despite its name, how long one attempt may take.
    ("grpc.min_reconnect_backoff_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service, and how to speak to it. Opens nothing by itself.

    Attributes:
        target: `host:port`, or any target that gRPC's name resolution understands.
        credentials: TLS credentials; None: plain text.
        api_key: API key or JWT, sent as `authorization: Bearer ...`; None: nothing is sent.
        api_key_file: file that holds it, read anew for every call, so that it can be replaced.

    Raises:
        ValueError: a credential would leave this machine in plain text, or is none.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_file: Path | None = None

    def __post_init__(self) -> None:
        if self.api_key and not _is_credential(self.api_key):
            # Not shown. gRPC would refuse each call, and say no more than "metadata was invalid".
            raise ValueError("api_key must be one line of ASCII")
        given = self.api_key or self.api_key_file
        if given and self.credentials is None and not stays_here(self.target):
            raise ValueError(
                f"api_key must not be sent in plain text to {self.target}: "
                "give TLS credentials (tls_ca_file), or use a loopback or unix: target"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata to send with a call; empty without a credential.

        Raises:
            SightlineError: UNAUTHENTICATED, `API_KEY_FILE_UNREADABLE`.
        """
        credential = self.api_key
        if self.api_key_file is not None:
            credential = _read(self.api_key_file)
        return (("authorization", f"Bearer {credential}"),) if credential else ()

    def channel(self, options: Sequence[tuple[str, object]] = ()) -> grpc.Channel:
        """Return a new channel for threads; it connects with the first call.

        Args:
            options: gRPC channel options on top of `OPTIONS`, or in their place.
        """
        chosen = _merged(options)
        if self.credentials is None:
            return grpc.insecure_channel(self.target, chosen)
        return grpc.secure_channel(self.target, self.credentials, chosen)


def _read(path: Path) -> str:
    try:
        credential = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", "") or "it is not ASCII") from error
    if not _is_credential(credential):
        raise _unreadable(path, "it must be one line")
    return credential


def _is_credential(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


def _unreadable(path: Path, why: str) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.UNAUTHENTICATED,
        "API_KEY_FILE_UNREADABLE",
        f"api_key_file: {path} cannot be used: {why}",
    )


def _merged(options: Sequence[tuple[str, object]]) -> list[tuple[str, object]]:
    # Of an option that is given twice, gRPC silently takes the first.
    return list({**dict(OPTIONS), **dict(options)}.items())
