"""The entries that pass from the memory buffer through the spool to the shipper."""

from dataclasses import dataclass
from enum import IntEnum


class GapReason(IntEnum):
    """Reasons for a gap; the numbers are those of `sightline.ingest.v1.GapReason`."""

    DROPPED_OLDEST = 1
    """Memory was full and the policy is to drop the oldest."""
    DROPPED_NEWEST = 2
    """Memory was full and the policy is to drop the newest."""
    SPOOL_BYTES = 3
    """The spool reached its maximum size."""
    SPOOL_AGE = 4
    """The prediction reached the spool's maximum age."""
    DISK_RESERVE = 5
    """Free disk space had fallen to the reserve."""
    SPOOL_DAMAGED = 6
    """The spool was damaged and the predictions could not be read."""
    UNREADABLE = 7
    """The server could not read the message even when it carried only this prediction."""
    RELEASED = 8
    """A server had confirmed the predictions, but the current store does not have them."""
    SPOOL_WRITE_FAILED = 9
    """Writing to the spool failed (disk error, disk full)."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A run of predictions dropped before they had a sequence. Each will occupy one."""

    count: int
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Row:
    """A spooled prediction."""

    sequence: int
    prediction: bytes
    """A serialised `sightline.types.v1.Prediction`, including its sequence."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of sequences, both ends included, that will never be sent."""

    first: int
    last: int
    reason: GapReason
    declared_at: float
    """Unix seconds by the device's clock."""

    @property
    def sequence(self) -> int:
        """The last sequence of the run; the next entry continues after it."""
        return self.last


Entry = Row | Gap
