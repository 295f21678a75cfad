"""BudgetBounds on the bytes of messages in flight, and on the time that they take to arrive."""

from dataclasses import dataclass

_MIN_PLACES = 16


@dataclass(frozen=True, slots=True)
class BudgetBounds:
    """The bounds of a `MemoryBudget`."""

    limit: int
    """Maximum bytes of requests in flight, >= largest + message_cost."""
    largest: int
    """Maximum size of a message that gRPC receives, bytes, >= 1."""
    window: int = 512 * 1024
    """Data of a message that gRPC receives before it is read, bytes."""
    kept: int = 0
    """Memory of a stream's handler while it waits for the next message, bytes."""
    waiting: int = 64 * 1024 * 1024
    """Maximum memory of waiting calls (windows and kept memory), bytes; others are refused."""
    message_cost: int = 0
    """Bytes that are counted for each message in addition to its size."""
    accepted: int | None = None
    """Maximum size of a message that is accepted, bytes; None: no maximum."""
    receive_seconds: float = 10.0
    """Maximum time for a message to arrive, s."""
    stalled_seconds: float = 1.0
    """Maximum time for a message to arrive while others wait for its memory, s."""
    stuck_seconds: float = 0.25
    """Time that a call must have waited before others lose their reservations, s: while
    reservations change hands, nothing is stuck."""
    patience_seconds: float = 2.0
    """Maximum time that a call waits for memory, s."""
    streams: int = 1 << 30
    """Maximum number of calls of one flow."""

    def __post_init__(self) -> None:
        if not 1 <= self.largest <= self.limit - self.message_cost:
            raise ValueError(
                f"limit must be at least largest, {self.largest}, and message_cost,"
                f" {self.message_cost} (got {self.limit})"
            )

    @property
    def places(self) -> int:
        """Maximum number of waiting calls."""
        return max(self.waiting // (self.window + self.kept), _MIN_PLACES)
