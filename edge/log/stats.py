"""The counters of a logger."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LoggerStats:
    """The counts of a logger since it was created.

    Example:
        >>> from sightline import Prediction, PredictionLogger
        >>> with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir="spool") as logger:
        ...     logger.log(Prediction("photo.jpg", "parts"), wait="spooled")
        ...     stats = logger.stats()
        >>> stats.logged, stats.spooled, stats.committed
        (1, 1, 0)
    """

    logged: int
    """Predictions that `log` accepted, including dropped ones."""
    spooled: int
    """Logged predictions that are on the disk or lost."""
    sent: int
    """Predictions and gaps that were sent, including repeated ones."""
    retried: int
    """Sent predictions and gaps that had been sent before."""
    failed: int
    """Calls to the server that failed; their contents are sent again."""
    committed: int
    """Predictions that the server has committed, including those of earlier processes."""
    rejected: int
    """Committed predictions that the server rejected as invalid and stores separately."""
    dropped: Mapping[str, int]
    """Predictions that will never be sent, by reason; each is declared in a gap."""
    backlog: int
    """Sequences in the spool that wait for the server, including those of earlier processes."""
    in_memory: int
    """Predictions that wait in memory for the spool."""
    damaged_spools: int
    """Spool files that were found damaged."""
    spool_id: str
    """The UUID of the spool. Empty: no spool is open yet."""
    last_error: str | None
    """Error of the last attempt to spool or to ship. None: it succeeded."""
    spool_error: str | None = None
    """Error of the last attempt to spool. None: it succeeded."""
    spool_bytes: int = 0
    """Size of the spool's content, bytes."""
    spool_limit_bytes: int = 0
    """Size at which the spool gives up its oldest predictions, bytes: its setting, or less near the
    reserve of the disk. 0: no spool is open yet."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Parts of results that could not be logged, by kind: `detection`, `track_id`, `keypoints`,
    `mask`, `mask_detail` (a mask that was simplified because it was too large), another part of
    ultralytics' `Results` by its name, such as `depth`, or `result` for a whole one. The first of
    each kind is reported as a warning."""
