"""The decisions of the shipper, as a pure state machine without clock, socket or file.

One `ShipCore` handles one spool. The shell calls `next` for the next step, carries it out, reports
the result, and carries out the returned actions in order.

The position is the last committed sequence, as the server reports it. The core learns it from
responses and watermarks, never from its own sends, and fetches the watermark after every failure.
"""

from dataclasses import dataclass

import grpc

from edge.spool.lineage import Agreement
from servicekit.errors import SightlineError

WATERMARK_SECONDS = 10.0
SEND_SECONDS = 30.0
_LONGEST_SEND_SECONDS = 3600.0
# Errors about a whole message. An invalid prediction is reported in the response instead.
_UNREADABLE = {"MALFORMED_MESSAGE", "MESSAGE_TOO_LARGE", "INVALID_FIELD"}


@dataclass(frozen=True, slots=True)
class FetchWatermark:
    """Fetch the watermark from the server."""

    timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a stream of the entries after a sequence, or only its header if `max_entries` is 0."""

    after: int
    max_entries: int
    timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The contents of a stream."""

    last: int
    """The last sequence of the stream; without entries, the sequence before it."""
    entries: int
    """Number of predictions and gaps."""
    is_prediction: bool = True
    """True if the last entry is a prediction."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Delete the committed entries."""

    through: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Turn a prediction that no server can read into a gap."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Rewind:
    """Declare as a gap what the server confirmed after this sequence and no longer has."""

    through: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Move the pending entries to a new spool_id. This core is then finished."""

    is_derived: bool = False
    """True if other copies may move the same pending predictions: all must choose the same spool_id
    and sequences."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Wait before the next attempt, longer after each failure."""

    error: SightlineError


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait as long as the server's rate limit requires; this does not count as a failure."""

    error: SightlineError


Action = Acknowledge | GiveUp | Rewind | Renew | BackOff | Pause


class ShipCore:
    """The state machine that ships one spool.

    A spool may have copies that ship as well, if it was restored from a backup or cloned with its
    machine. Entries from before the copy are the same in both: whichever copy sends them first, the
    other's are duplicates. Later entries differ but have the same sequences. They move to a new
    spool_id as soon as the server has entries that are not from here.

    Args:
        acknowledged: the last sequence that is no longer in the spool.
        sent_through: every sequence up to and including this one may have been sent from here, and
            no later one.
        opened_at: the last sequence when the spool was opened. A copy that was made before may have
            sent the same entries up to there.
        stream_size: number of entries in one stream at most.

    Attributes:
        position: the last sequence known to be committed.
    """

    def __init__(
        self, *, acknowledged: int, sent_through: int, opened_at: int, stream_size: int
    ) -> None:
        self.position = acknowledged
        self._sent_through = max(sent_through, acknowledged)
        self._opened_at = opened_at
        self._stream_size = stream_size
        self._limit = stream_size
        self._timeout = SEND_SECONDS
        self._is_known = False  # True if the server has confirmed the position
        self._suspect: int | None = None  # a prediction that was refused when sent alone
        self._had_hole = False
        self._is_disputed = False  # True if the server has others with these sequences
        self._probe: int | None = None  # a committed sequence to send again for comparison
        self._known_to_others = 0  # a copy may have sent this far before this stream

    def next(self) -> FetchWatermark | Send:
        """Return the next step if there are entries to send."""
        if not self._is_known:
            return FetchWatermark(WATERMARK_SECONDS)
        if self._probe is not None:
            return Send(self._probe - 1, 1, self._timeout)
        # A prediction is given up only if a bare header passes; otherwise the fault is elsewhere.
        limit = self._limit if self._suspect is None else 0
        return Send(self.position, limit, self._timeout)

    def watermark_received(self, watermark: int, agreed: Agreement | None = None) -> list[Action]:
        """Process the server's watermark.

        Args:
            watermark: the last committed sequence.
            agreed: how far the committed entries were spooled here. None: the server cannot tell.
        """
        self._is_known = True
        if agreed is not None and self._has_lost(watermark, agreed):
            self.position = agreed.through
            return [Rewind(agreed.through), Renew(is_derived=True)]
        if watermark < self.position:
            self.position = watermark
            return [Rewind(watermark), *self._renewed_if_disputed()]
        if watermark > self.position and self._is_foreign(watermark, agreed):
            common = self._common(agreed)
            return [*self._advance(common), Renew(common is not None and agreed is not None)]
        if self._is_disputed:
            return [Renew()]
        if agreed is not None and watermark > self._reach:
            # Either a copy has sent these entries, or a clone of this process has sent others. Send
            # the last one again, so that the server compares it.
            self._probe = watermark
            return []
        return self._advance(watermark)

    def sending(self, sent: Sent) -> None:
        """Record a stream before it is opened: from now on the server may have its entries."""
        self._known_to_others = self._reach
        self._sent_through = max(self._sent_through, sent.last)

    def stream_answered(
        self, committed_through: int, sent: Sent, duplicates: int = 0
    ) -> list[Action]:
        """Process the response to a stream.

        Args:
            committed_through: the last committed sequence.
            sent: the contents of the stream.
            duplicates: predictions of the stream whose sequences were committed before, possibly
                with other contents. 0 if the server knows that the contents were the same.
        """
        self._had_hole = False
        if sent.entries == 0:
            return self._header_passed()
        probe, self._probe = self._probe, None
        if probe is None and duplicates > max(
            0, min(sent.last, self._known_to_others) - self.position
        ):
            # A server without generations mistook some for duplicates of a copy's predictions.
            return [*self._advance(min(self._known_to_others, committed_through)), Renew()]
        before = self.position
        self._limit = min(self._stream_size, self._limit * 2)
        self._timeout = SEND_SECONDS
        self._is_known = committed_through == sent.last
        actions = self._advance(min(committed_through, sent.last))
        if self.position == before:
            return [BackOff(_no_progress(committed_through, sent))]
        return actions

    def call_failed(self, error: SightlineError, sent: Sent | None) -> list[Action]:
        """Process the failure of a stream, or of fetching the watermark if `sent` is None."""
        if sent is not None and error.reason == "RATE_LIMITED" and self._suspect is None:
            return self._limited(error, sent)
        self._is_known, self._probe = False, None
        suspect, self._suspect = self._suspect, None
        if sent is None or suspect is not None:
            return [BackOff(error)]
        if error.reason == "SEQUENCE_HOLE" and not self._had_hole:
            self._had_hole = True
            return []  # next: fetch the watermark, which shows whose predictions the server has
        if error.reason == "SEQUENCE_CONFLICT" and not self._is_disputed:
            self._is_disputed = True
            return []  # next: fetch the watermark, which shows how far the server agrees
        if _is_unreadable(error):
            return self._isolate(error, sent)
        if error.reason == "MESSAGE_STALLED":  # the uplink is slow: a smaller one may arrive
            self._limit = max(1, sent.entries // 2)
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._limit = max(1, sent.entries // 2)
            self._timeout = min(self._timeout * 2, _LONGEST_SEND_SECONDS)
        return [BackOff(error)]

    def restart(self, acknowledged: int) -> None:
        """Start again from the spool's state, after actions that could not be carried out.

        Args:
            acknowledged: the last sequence that is no longer in the spool.
        """
        self.position = acknowledged
        self._is_known = False
        self._suspect = self._probe = None

    @property
    def _reach(self) -> int:
        """The last sequence that a copy may have sent; only this spool has later entries."""
        return max(self._sent_through, self._opened_at)

    def _has_lost(self, watermark: int, agreed: Agreement) -> bool:
        """Return True if the server has a copy's predictions in place of some that it confirmed.

        That happens if its store was restored from a backup and the copy shipped first.
        """
        return not agreed.is_lower_bound and agreed.through < min(watermark, self.position)

    def _is_foreign(self, watermark: int, agreed: Agreement | None) -> bool:
        """Return True if some committed entries are not from this spool."""
        if agreed is None:
            return watermark > self._reach
        return agreed.through < watermark

    def _common(self, agreed: Agreement | None) -> int | None:
        """Return the last committed sequence that was spooled here, if later ones are foreign.

        Returns:
            None if it is not known.
        """
        if agreed is None:
            return self._sent_through
        # Only a clone of this running process adds to its opening. Entries that were being sent
        # when it was cloned may come from either.
        is_cloned = agreed.is_overrun and agreed.through > self._reach
        return None if is_cloned else agreed.through

    def _renewed_if_disputed(self) -> list[Action]:
        return [Renew()] if self._is_disputed else []

    def _advance(self, through: int | None) -> list[Action]:
        if through is None or through <= self.position:
            return []
        self.position = through
        return [Acknowledge(through)]

    def _limited(self, error: SightlineError, sent: Sent) -> list[Action]:
        """Continue after the entries that the server accepted before its rate limit.

        The error contains that position. Fetching the watermark instead would also count against
        the limit and could use it up each time.
        """
        before = self.position
        through = error.metadata.get("committed_through", "")
        actions = self._advance(min(int(through), sent.last)) if through.isdecimal() else []
        if actions:
            self._limit = max(1, min(sent.entries, self.position - before))
        return [*actions, Pause(error)]

    def _isolate(self, error: SightlineError, sent: Sent) -> list[Action]:
        if sent.entries > 1:
            self._limit = sent.entries // 2
            return []
        if not sent.is_prediction:
            return [BackOff(error)]
        self._suspect = sent.last
        return []

    def _header_passed(self) -> list[Action]:
        suspect, self._suspect = self._suspect, None
        if suspect != self.position + 1:  # it was committed meanwhile
            return []
        return [GiveUp(suspect)]


def _is_unreadable(error: SightlineError) -> bool:
    if error.reason in _UNREADABLE:
        return True
    # gRPC itself refuses a message above the server's limit, with no reason but this text.
    too_large = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return too_large and "larger than max" in error.message


def _no_progress(committed_through: int, sent: Sent) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.INTERNAL,
        "NOTHING_COMMITTED",
        f"the server answered a stream up to sequence {sent.last} "
        f"with committed_through = {committed_through}",
    )
