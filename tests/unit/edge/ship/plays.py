"""Plays of the shipper's state machine: what it does, and what it is told."""

from collections.abc import Sequence

from edge.ship.core import (
    SEND_SECONDS,
    WATERMARK_SECONDS,
    Action,
    FetchWatermark,
    Send,
    Sent,
    ShipCore,
)
from edge.spool.lineage import Agreement
from servicekit.errors import SightlineError


class Play:
    """Plays a transcript against a core: what it wants, what happens, what it does about it."""

    def __init__(
        self, acknowledged: int = 0, last: int = 0, stream_size: int = 8, sent: int | None = None
    ) -> None:
        self.core = ShipCore(
            acknowledged=acknowledged,
            sent_through=last if sent is None else sent,
            opened_at=last,
            stream_size=stream_size,
        )
        self._sent: Sent | None = None

    def asks(self) -> "Play":
        assert self.core.next() == FetchWatermark(WATERMARK_SECONDS)
        self._sent = None
        return self

    def sends(
        self,
        after: int,
        last: int,
        limit: int = 8,
        timeout: float = SEND_SECONDS,
        *,
        gap: bool = False,
        entries: int | None = None,
    ) -> "Play":
        assert self.core.next() == Send(after, limit, timeout)
        count = last - after if entries is None else entries
        self._sent = Sent(last, count, is_prediction=bool(count) and not gap)
        self.core.sending(self._sent)
        return self

    def watermark(self, number: int, agreed: Agreement | None = None) -> "Answer":
        assert self._sent is None
        return Answer(self, self.core.watermark_received(number, agreed))

    def answer(self, committed_through: int, duplicates: int = 0) -> "Answer":
        assert self._sent is not None
        return Answer(self, self.core.stream_answered(committed_through, self._sent, duplicates))

    def fails(self, error: SightlineError) -> "Answer":
        return Answer(self, self.core.call_failed(error, self._sent))


class Answer:
    def __init__(self, play: Play, actions: Sequence[Action]) -> None:
        self._play = play
        self._actions = list(actions)

    def then(self, *actions: Action) -> Play:
        assert self._actions == list(actions)
        return self._play
