"""How a device reaches a service: one place for TLS, the API key and the keepalive options."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

from servicekit.tls import channel_credentials

if TYPE_CHECKING:
    from edge.settings import EdgeSettings

# A dead network path is noticed within half a minute although TCP alone would take a quarter of
# an hour, and after an outage the next attempt is never more than five seconds away (gRPC's own
# default is two minutes).
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service, and how to speak to it. Opens nothing by itself.

    Attributes:
        target: `host:port`, or any target that gRPC's name resolution understands.
        credentials: TLS credentials; None: plain text.
        api_key: sent as `authorization: Bearer ...`; None: nothing is sent.

    Raises:
        ValueError: an API key would leave this machine in plain text.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.api_key and self.credentials is None and not _stays_here(self.target):
            raise ValueError(
                f"api_key must not be sent in plain text to {self.target}: "
                "give TLS credentials (tls_ca_file), or use a loopback or unix: target"
            )

    @classmethod
    def to_ingest(cls, settings: "EdgeSettings") -> Self:
        """Returns the ingest service that the settings name.

        Raises:
            servicekit.settings.SettingsError: a TLS file cannot be used.
            ValueError: as above.
        """
        return cls(settings.ingest_target, channel_credentials(settings), _api_key(settings))

    @classmethod
    def to_inference(cls, settings: "EdgeSettings") -> Self:
        """Returns the inference service that the settings name; see `to_ingest`."""
        return cls(settings.inference_target, channel_credentials(settings), _api_key(settings))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata to send with every call; empty without an API key."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def channel(self, options: Sequence[tuple[str, object]] = ()) -> grpc.Channel:
        """Returns a new channel for threads; it connects with the first call.

        Args:
            options: gRPC channel options on top of `OPTIONS`, or in their place.
        """
        chosen = _merged(options)
        if self.credentials is None:
            return grpc.insecure_channel(self.target, chosen)
        return grpc.secure_channel(self.target, self.credentials, chosen)

    def aio_channel(self, options: Sequence[tuple[str, object]] = ()) -> grpc.aio.Channel:
        """Returns a new channel for the running asyncio loop; see `channel`."""
        chosen = _merged(options)
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, chosen)
        return grpc.aio.secure_channel(self.target, self.credentials, chosen)


def _api_key(settings: "EdgeSettings") -> str | None:
    return settings.api_key.get_secret_value() if settings.api_key else None


def _merged(options: Sequence[tuple[str, object]]) -> list[tuple[str, object]]:
    # Of an option that is given twice, gRPC silently takes the first.
    return list({**dict(OPTIONS), **dict(options)}.items())


def _stays_here(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rsplit("/", 1)[-1].rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
