"""What the shipper does next: decided here, without a clock, a socket or a file.

One `ShipCore` speaks for one spool. The shell asks `next` what to do, does it, reports what came of
it, and carries out the actions that it gets back, in order.

The server's word is the position: the last sequence that is committed. The core takes it from
answers and watermarks, never from its own sends, and asks again whenever a call has failed.
"""

from dataclasses import dataclass

import grpc

from edge.spool.lineage import Agreement
from servicekit.errors import SightlineError

WATERMARK_SECONDS = 10.0
SEND_SECONDS = 30.0
_LONGEST_SEND_SECONDS = 3600.0
# What the service says of a message as such; a prediction that breaks a rule is an answer instead.
_UNREADABLE = {"MALFORMED_MESSAGE", "MESSAGE_TOO_LARGE", "INVALID_FIELD"}


@dataclass(frozen=True, slots=True)
class FetchWatermark:
    """Get the watermark."""

    timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Send:
    """Stream what comes after a sequence; with no entries, just the header."""

    after: int
    max_entries: int
    timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a stream carried."""

    last: int
    """The last sequence; for no entries, the one before them."""
    entries: int
    """How many predictions and gaps."""
    is_prediction: bool = True
    """Whether the last entry is a prediction."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Delete what is committed."""

    through: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Turn a prediction that no server can read into a gap."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Rewind:
    """Owe the server again, as a gap, what it once confirmed after this sequence."""

    through: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Move what is pending to a new spool_id; this core has then done its work."""

    is_derived: bool = False
    """Other copies may have the same predictions pending, and move them too: they must arrive at
    the same spool_id and sequence."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Wait before the next attempt, longer after each failure."""

    error: SightlineError


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait as long as the server asks for, which is no failure: it limits this caller."""

    error: SightlineError


Action = Acknowledge | GiveUp | Rewind | Renew | BackOff | Pause


class ShipCore:
    """Decides for one spool.

    A spool may have copies that ship as well: it was put back from a backup, or cloned with its
    machine. What was in it when the copy was made is the same in both, and whichever sends it
    first, the other's is a duplicate. What came after differs, under the same sequences: it goes on
    under a new spool_id as soon as the server has something that is not from here.

    Args:
        acknowledged: where the spool begins.
        sent_through: every sequence up to this one may have been sent from here, no later one.
        opened_at: the last sequence when the spool was opened. A copy that was made before then may
            have sent that far, and has sent the same.
        stream_size: entries in one stream at most.

    Attributes:
        position: the last sequence that is known to be committed.
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
        self._is_known = False  # whether the server has confirmed the position
        self._suspect: int | None = None  # a prediction that was refused alone
        self._had_hole = False
        self._is_disputed = False  # the server has other predictions under these sequences
        self._probe: int | None = None  # a committed sequence that is sent again, to be compared
        self._known_to_others = 0  # a copy may have sent this far before the stream under way

    def next(self) -> FetchWatermark | Send:
        """Return what to do when there is something to send."""
        if not self._is_known:
            return FetchWatermark(WATERMARK_SECONDS)
        if self._probe is not None:
            return Send(self._probe - 1, 1, self._timeout)
        # Before a prediction is given up, a bare header must pass: else the fault is elsewhere.
        limit = self._limit if self._suspect is None else 0
        return Send(self.position, limit, self._timeout)

    def watermark_received(self, watermark: int, agreed: Agreement | None = None) -> list[Action]:
        """Process the server's watermark.

        Args:
            watermark: the last sequence that is committed.
            agreed: up to where what is committed is what was spooled here. None: the server cannot
                tell.
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
            # A copy of what is here has sent it, or a clone of this very process has sent another:
            # the server compares the last one.
            self._probe = watermark
            return []
        return self._advance(watermark)

    def sending(self, sent: Sent) -> None:
        """Take note of a stream before it is opened: from now on the server may have it."""
        self._known_to_others = self._reach
        self._sent_through = max(self._sent_through, sent.last)

    def stream_answered(
        self, committed_through: int, sent: Sent, duplicates: int = 0
    ) -> list[Action]:
        """Process the answer to a stream.

        Args:
            committed_through: the last sequence that is committed.
            sent: what the stream carried.
            duplicates: predictions of the stream that the server had before, whether they were
                these or others; 0 where it knows that they were these.
        """
        self._had_hole = False
        if sent.entries == 0:
            return self._header_passed()
        probe, self._probe = self._probe, None
        if probe is None and duplicates > max(
            0, min(sent.last, self._known_to_others) - self.position
        ):
            # A server that keeps no generations took some for those of a copy, which are others.
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
        """Take the failure of a stream, or (None) of a question."""
        if sent is not None and error.reason == "RATE_LIMITED" and self._suspect is None:
            return self._limited(error, sent)
        self._is_known, self._probe = False, None
        suspect, self._suspect = self._suspect, None
        if sent is None or suspect is not None:
            return [BackOff(error)]
        if error.reason == "SEQUENCE_HOLE" and not self._had_hole:
            self._had_hole = True
            return []  # to ask: where the server is does not say whose predictions it has there
        if error.reason == "SEQUENCE_CONFLICT" and not self._is_disputed:
            self._is_disputed = True
            return []  # to ask how far the server agrees
        if _is_unreadable(error):
            return self._isolate(error, sent)
        if error.reason == "MESSAGE_STALLED":  # the uplink is slow: what is smaller may arrive
            self._limit = max(1, sent.entries // 2)
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._limit = max(1, sent.entries // 2)
            self._timeout = min(self._timeout * 2, _LONGEST_SEND_SECONDS)
        return [BackOff(error)]

    def restart(self, acknowledged: int) -> None:
        """Take it that the last actions were not carried out; the server is asked again.

        Args:
            acknowledged: where the spool begins.
        """
        self.position = acknowledged
        self._is_known = False
        self._suspect = self._probe = None

    @property
    def _reach(self) -> int:
        """Up to where a copy may have sent what is here: nobody else has what came later."""
        return max(self._sent_through, self._opened_at)

    def _has_lost(self, watermark: int, agreed: Agreement) -> bool:
        """Say whether the server has others' predictions in place of some that it confirmed.

        Its store was put back, and a copy of this spool has gone on first.
        """
        return not agreed.is_lower_bound and agreed.through < min(watermark, self.position)

    def _is_foreign(self, watermark: int, agreed: Agreement | None) -> bool:
        """Say whether something that is committed is not from here."""
        if agreed is None:
            return watermark > self._reach
        return agreed.through < watermark

    def _common(self, agreed: Agreement | None) -> int | None:
        """Return up to where what is committed was spooled here, where its end is foreign.

        None: nothing tells.
        """
        if agreed is None:
            return self._sent_through
        # Who adds to the opening of this process is a clone of it, with the machine as it ran: what
        # was on its way then may be from either.
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
        """Go on from what the server took before its limit: it says so, and need not be asked.

        To ask would cost what the limit allows, too, and could use it up each time.
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
        if suspect != self.position + 1:  # it was committed after all
            return []
        return [GiveUp(suspect)]


def _is_unreadable(error: SightlineError) -> bool:
    if error.reason in _UNREADABLE:
        return True
    # gRPC itself refuses what is over the server's limit, and has no reason for it but this text.
    too_large = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return too_large and "larger than max" in error.message


def _no_progress(committed_through: int, sent: Sent) -> SightlineError:
    return SightlineError(
        grpc.StatusCode.INTERNAL,
        "NOTHING_COMMITTED",
        f"the server answered a stream up to sequence {sent.last} "
        f"with committed_through = {committed_through}",
    )
