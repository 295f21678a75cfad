"""What passes from memory through the spool to the shipper."""

from dataclasses import dataclass
from enum import IntEnum


class GapReason(IntEnum):
    """Why predictions never reach the server; numbered as `sightline.ingest.v1.GapReason`."""

    DROPPED_OLDEST = 1
    """Memory was full and the policy was to drop the oldest."""
    DROPPED_NEWEST = 2
    """Memory was full and the policy was to drop the newest."""
    SPOOL_BYTES = 3
    """The spool reached its cap in bytes."""
    SPOOL_AGE = 4
    """The prediction reached the spool's cap in age."""
    DISK_RESERVE = 5
    """The disk had reached its reserve of free space."""
    SPOOL_DAMAGED = 6
    """The spool was damaged and the predictions could not be read."""
    UNREADABLE = 7
    """The server refused to read the message even when it carried this prediction alone."""
    RELEASED = 8
    """A server had confirmed them, but the present server's store does not have them."""
    SPOOL_WRITE_FAILED = 9
    """Writing to the spool failed (disk error, disk full)."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Predictions that were given up before they had a sequence; each will take one."""

    count: int
    reason: GapReason


@dataclass(frozen=True, slots=True)
class Row:
    """A spooled prediction."""

    sequence: int
    prediction: bytes
    """A serialised `sightline.types.v1.Prediction`, with its sequence."""


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
        """The last sequence: where the entry after this one continues."""
        return self.last


Entry = Row | Gap
