"""Where the messages of each method find room: those of large requests, or those of small ones.

Two `BytesInFlight`: uploads, pictures and predictions share one; what only asks (statistics,
watermarks, health, reflection) has another, so that it never waits behind them.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from servicekit.calls.in_flight import BytesInFlight
from servicekit.calls.room_bounds import Bounds
from servicekit.server_settings import ServerSettings

SMALL_BYTES = 256 * 1024
"""The largest request of a method that only asks."""
_STALLED_SECONDS = 0.2
"""How long the request of such a method may take to arrive while others wait, s."""
_WINDOW_BYTES = 512 * 1024
"""What gRPC takes of a message that nobody reads yet. A request of up to that is sent without
waiting for the server, and a larger one waits a round trip longer."""


def bounds_of(settings: ServerSettings, window: int = _WINDOW_BYTES, kept: int = 0) -> Bounds:
    """Return the bounds that a server's settings ask for.

    Args:
        settings: the server's.
        window: what gRPC takes of one stream ahead of its handler, bytes.
        kept: what the handler of a stream keeps while it waits for the next message, bytes.
    """
    return Bounds(
        most=settings.bytes_in_flight,
        largest=settings.max_message_bytes,
        window=window,
        kept=kept,
        waiting=settings.bytes_in_flight // 2,
        receive_seconds=settings.receive_timeout_seconds,
        streams=settings.max_streams_per_caller,
    )


def channel_options(bounds: Bounds) -> Mapping[str, int]:
    """Return the server options without which the bounds would not hold."""
    return {
        "grpc.max_receive_message_length": bounds.largest,
        "grpc.http2.lookahead_bytes": bounds.window,
        # gRPC would widen the windows of fast connections until it holds whole requests that nobody
        # has asked it for.
        "grpc.http2.bdp_probe": 0,
    }


class Rooms:
    """The room of one server's calls.

    Args:
        bounds: for all of them.
        large: full methods whose requests may be as large as the bounds allow.
    """

    def __init__(self, bounds: Bounds, large: Collection[str]) -> None:
        small = _small(bounds)
        self._large = frozenset(large)
        rest = max(bounds.most - small.most, bounds.largest + bounds.message_cost)
        self.for_large = BytesInFlight(replace(bounds, most=rest))
        self.for_small = BytesInFlight(small)

    def of(self, method: str) -> BytesInFlight:
        """Return where the messages of a full method find room."""
        return self.for_large if method in self._large else self.for_small


def _small(bounds: Bounds) -> Bounds:
    """Return the bounds of requests that only ask: an eighth of all, and four rooms if they fit.

    A room is as large as elsewhere: until a message is there nobody knows that it is small. But it
    comes with its headers, so those that wait for one have not long to wait.
    """
    most = max(bounds.most // 8, min(4 * bounds.largest, bounds.most // 3), bounds.largest)
    return replace(
        bounds,
        most=most,
        message_cost=0,
        kept=0,
        waiting=bounds.waiting // 2,
        accepted=SMALL_BYTES,
        stalled_seconds=_STALLED_SECONDS,
        stuck_seconds=_STALLED_SECONDS / 4,
    )
