"""The types of what a store returns about devices, spools, gaps and rejections.

Times are in microseconds since 1970, UTC.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias

Place: TypeAlias = tuple[int, str, str, int]
"""The place of a record in an order: a time, a device, a spool and a sequence; a `Position`."""


class StreamAccount(NamedTuple):
    """A device's own account of its log, from the header of a stream."""

    waiting_predictions: int
    spool_bytes: int
    oldest_waiting_seconds: float | None
    """None: none waits, or not known."""
    dropped: Mapping[str, int]
    """Predictions by the name of the reason, as in the table `gaps`."""
    logged: int
    uptime_seconds: float | None
    """None: not known."""

    def as_json(self) -> str:
        """Return the account as the store keeps it."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "StreamAccount":
        """Return the account that `as_json` has written."""
        return cls(**json.loads(text))


class LastStream(NamedTuple):
    """The last stream of a device."""

    opened_us: int
    clock_offset_seconds: float | None
    """None: the device did not send its clock."""
    client: str
    account: StreamAccount | None


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """A query for devices and their rates."""

    device_ids: tuple[str, ...]
    """Empty: every device."""
    now: datetime
    """The server's wall clock, UTC."""
    window: timedelta
    """The time up to now in which predictions are counted, and as long before it."""


class DeviceRecord(NamedTuple):
    """A device as the log knows it."""

    device_id: str
    last_received_us: int | None
    """None: nothing was committed."""
    in_window: int
    """Predictions that were committed in the window."""
    in_window_before: int
    stream: LastStream | None
    """None: not known."""
    predictions: int
    """Stored ones, as `defects` and `rejected`."""
    defects: int
    rejected: int
    gap_sequences: int
    by_hour: Sequence[int]
    """Predictions by the hour of their capture: the last 24 hours, oldest first."""


class ReasonCount(NamedTuple):
    """A number of sequences with one reason."""

    reason: str
    sequences: int


@dataclass(frozen=True, slots=True)
class LedgerRecord:
    """The account of one spool, or of several together."""

    device_id: str
    """Empty for several, as `spool_id`."""
    spool_id: str
    accepted: int
    """Predictions that were stored, including those that retention has deleted."""
    rejected: int
    gap_sequences: int
    committed_through: int
    duplicates: int
    expired: int
    """Predictions that retention has deleted."""
    balanced: bool
    updated_us: int | None
    """None for several."""
    gaps_by_reason: Sequence[ReasonCount] = ()
    """Largest first, at most 50, as `rejected_by_reason`."""
    rejected_by_reason: Sequence[ReasonCount] = ()
    """As far as retention has not deleted them."""


@dataclass(frozen=True, slots=True)
class LossFilter:
    """A filter of gaps or of rejected predictions; both conditions must hold."""

    device_ids: tuple[str, ...] = ()
    """Empty: every device."""
    reason: str | None = None


class GapRecord(NamedTuple):
    """A stored gap."""

    received_us: int
    device_id: str
    spool_id: str
    first_sequence: int
    last_sequence: int
    reason: str
    declared_us: int | None


class RejectedRecord(NamedTuple):
    """A rejected prediction."""

    received_us: int
    device_id: str
    spool_id: str
    sequence: int
    field: str
    reason: str
    original: str
    """JSON."""


class StoredAt(NamedTuple):
    """The commit of a stored prediction."""

    received_us: int


class Absence(Enum):
    """Reasons why a store has nothing for a sequence."""

    NOT_COMMITTED = "not committed"
    EXPIRED = "deleted by retention"
    LOST = "committed, and neither stored nor deleted by retention"


class RecordReader(Protocol):
    """The part of a `Reader` that returns devices, the ledger, gaps and rejections."""

    def devices(self, query: FleetQuery, size: int, after: Place | None) -> Sequence[DeviceRecord]:
        """Return at most `size` devices that have opened a stream, in the order of their ids.

        Args:
            query: the devices, and the time of their rates.
            size: >= 1.
            after: `device_id` is that of the last device of the page before; None: the first page.
        """
        ...

    def ledger(
        self, device_ids: Sequence[str], size: int, after: Place | None
    ) -> tuple[Sequence[LedgerRecord], LedgerRecord]:
        """Return the accounts of at most `size` spools, last commit first, and that of all.

        Args:
            device_ids: the devices; empty: all.
            size: >= 1.
            after: update time and key of the last spool of the page before, with sequence 0; None:
                the first page.
        """
        ...

    def gaps(self, filter_: LossFilter, size: int, after: Place | None) -> Sequence[GapRecord]:
        """Return at most `size` gaps, newest commit first.

        Args:
            filter_: conditions of the gaps.
            size: >= 1.
            after: position of the last gap of the page before, with its first sequence.
        """
        ...

    def rejections(
        self, filter_: LossFilter, size: int, after: Place | None
    ) -> Sequence[RejectedRecord]:
        """Return at most `size` rejected predictions, newest commit first.

        Args:
            filter_: conditions of the predictions.
            size: >= 1.
            after: position of the last one of the page before; None: the first page.
        """
        ...

    def find(
        self, spool: tuple[str, str], sequence: int
    ) -> StoredAt | RejectedRecord | GapRecord | Absence:
        """Return what became of one sequence.

        Args:
            spool: a device and the id of its spool.
            sequence: >= 1.
        """
        ...
