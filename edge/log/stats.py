"""What a logger counts."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoggerStats:
    """What became of predictions, since the logger was made."""

    logged: int
    """Predictions that `log` took, dropped ones included."""
    spooled: int
    """Of them, those that are on the disk, or lost for good."""
    sent: int
    """Predictions and gaps that were put on the wire, those sent again included."""
    retried: int
    """Of the sent, those that had been sent before."""
    failed: int
    """Calls to the server that failed; what they carried is sent again."""
    committed: int
    """Predictions that the server has, those of earlier processes included."""
    rejected: int
    """Of the committed, those that broke a rule; the server keeps them apart."""
    dropped: Mapping[str, int]
    """Predictions that will never be sent, by reason; each is, or will be, in a gap."""
    backlog: int
    """Sequences that wait in the spool for the server, those of earlier processes included."""
    in_memory: int
    """Predictions that wait in memory for the spool."""
    damaged_spools: int
    """Spool files that were found damaged and set aside."""
    spool_id: str
    """The UUID that the sequences count in; empty: no spool is open yet."""
    last_error: str | None
    """Why the last attempt to spool or to ship failed. None: it did not."""
