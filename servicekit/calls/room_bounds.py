"""Bounds on the bytes of messages in flight, and on the time that they take to arrive."""

from dataclasses import dataclass

_LEAST_PLACES = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of a `BytesInFlight`."""

    most: int
    """Bytes of requests at a time, >= largest + message_cost."""
    largest: int
    """The largest message that gRPC would hold for a reader, bytes, >= 1."""
    window: int = 512 * 1024
    """What gRPC takes of a message that nobody reads yet, bytes."""
    kept: int = 0
    """What the handler of a stream keeps while it waits for the next message, bytes."""
    waiting: int = 64 * 1024 * 1024
    """What calls may hold that wait for room, bytes: windows, and what their handlers keep. Beyond
    it they are refused."""
    message_cost: int = 0
    """Bytes that each message counts for besides its own."""
    accepted: int | None = None
    """The largest message that is accepted, bytes; None: whatever arrives."""
    receive_seconds: float = 10.0
    """How long a message may take to arrive at most, s."""
    stalled_seconds: float = 1.0
    """How long it may take while others wait for its room, s."""
    stuck_seconds: float = 0.25
    """How long somebody must have waited before others lose their rooms, s: while rooms go from
    hand to hand nobody is late."""
    patience_seconds: float = 2.0
    """How long a call waits for room, s."""
    streams: int = 1 << 30
    """Calls of one flow at a time."""

    def __post_init__(self) -> None:
        if not 1 <= self.largest <= self.most - self.message_cost:
            raise ValueError(
                f"most must be at least largest, {self.largest}, and message_cost,"
                f" {self.message_cost} (got {self.most})"
            )

    @property
    def places(self) -> int:
        """How many calls may wait."""
        return max(self.waiting // (self.window + self.kept), _LEAST_PLACES)
