"""The memory budgets of one server: one for large requests, one for small ones.

Uploads, images and predictions share one `MemoryBudget`. Small requests (statistics, watermarks,
health, reflection) have another, so that they never wait behind large ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.memory_budget import MemoryBudget
from servicekit.server_settings import ServerSettings

SMALL_BYTES = 256 * 1024
"""Maximum size of a small request, bytes."""
_STALLED_SECONDS = 0.2
"""Maximum time for a small request to arrive while others wait, s."""
_WINDOW_BYTES = 512 * 1024
"""Bytes of a message that gRPC receives before it is read. A request of up to that size is sent
without waiting for the server; a larger one takes another round trip."""


def bounds_of(settings: ServerSettings, window: int = _WINDOW_BYTES, kept: int = 0) -> BudgetBounds:
    """Return the bounds that a server's settings define.

    Args:
        settings: of the server.
        window: data of one stream that gRPC receives ahead of its handler, bytes.
        kept: memory of a stream's handler while it waits for the next message, bytes.
    """
    return BudgetBounds(
        limit=settings.bytes_in_flight,
        largest=settings.max_message_bytes,
        window=window,
        kept=kept,
        waiting=settings.bytes_in_flight // 2,
        receive_seconds=settings.receive_timeout_seconds,
        streams=settings.max_streams_per_caller,
    )


def channel_options(bounds: BudgetBounds) -> Mapping[str, int]:
    """Return the server options that the bounds rely on."""
    return {
        "grpc.max_receive_message_length": bounds.largest,
        "grpc.http2.lookahead_bytes": bounds.window,
        # gRPC would widen the windows of fast connections until it holds whole unread requests.
        "grpc.http2.bdp_probe": 0,
    }


class MemoryBudgets:
    """The memory budgets of one server.

    Args:
        bounds: for all of them.
        large: full methods whose requests may be as large as the bounds allow.
    """

    def __init__(self, bounds: BudgetBounds, large: Collection[str]) -> None:
        small = _small(bounds)
        self._large = frozenset(large)
        rest = max(bounds.limit - small.limit, bounds.largest + bounds.message_cost)
        self.for_large = MemoryBudget(replace(bounds, limit=rest))
        self.for_small = MemoryBudget(small)

    def of(self, method: str) -> MemoryBudget:
        """Return the budget of a full method."""
        return self.for_large if method in self._large else self.for_small


def _small(bounds: BudgetBounds) -> BudgetBounds:
    """Return the bounds of small requests: an eighth of all, or four reservations if they fit.

    A reservation is as large as for large requests, because a message's size is not known before it
    has arrived. A small message arrives with its headers, so waits are short.
    """
    limit = max(bounds.limit // 8, min(4 * bounds.largest, bounds.limit // 3), bounds.largest)
    return replace(
        bounds,
        limit=limit,
        message_cost=0,
        kept=0,
        waiting=bounds.waiting // 2,
        accepted=SMALL_BYTES,
        stalled_seconds=_STALLED_SECONDS,
        stuck_seconds=_STALLED_SECONDS / 4,
    )
