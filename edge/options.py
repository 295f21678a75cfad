"""How a logger is tuned, and the defaults."""

from dataclasses import dataclass
from typing import Literal, get_args

from edge.records import MAX_SIZE
from edge.spool.caps import SpoolLimits
from edge.wire import MAX_MESSAGE

Compression = Literal["none", "gzip"]


@dataclass(frozen=True)
class LogOptions:
    """Bounds and sizes of a `PredictionLogger`.

    Raises:
        ValueError: a number is out of its range.
    """

    memory_predictions: int = 10_000
    """Predictions that may wait in memory for the spool, >= 1."""
    memory_bytes: int = 16 << 20
    """The same in bytes on the wire, at least `records.MAX_SIZE`; as objects they take more."""
    spool_bytes: int = 1 << 30
    """Size at which the spool gives up its oldest predictions, at least 1 MiB."""
    spool_age_seconds: float = 30 * 86_400.0
    """Age at which a spooled prediction is given up. 0: never."""
    disk_reserve_bytes: int = 256 << 20
    """Free disk space at which the spool stops growing. 0: it grows until the disk is full."""
    batch_size: int = 32
    """Predictions in one message to the ingest service at most, 1 to 10 000."""
    batch_bytes: int = 1 << 20
    """Bytes of one message at most, 1 KiB to 4 MiB; one prediction is sent whatever its size."""
    batch_timeout_seconds: float = 1.0
    """How long a spooled prediction waits at most for others to be sent with."""
    stream_size: int = 24_576
    """Predictions in one stream, which is answered once they are committed, >= 1."""
    compression: Compression = "none"
    """Of messages on the wire: `gzip` spares the network and costs the device's CPU."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("memory_predictions", 1, 1_000_000),
            ("memory_bytes", MAX_SIZE, 1 << 34),
            ("spool_bytes", 1 << 20, 1 << 50),
            ("spool_age_seconds", 0, 1 << 40),
            ("disk_reserve_bytes", 0, 1 << 50),
            ("batch_size", 1, 10_000),
            ("batch_bytes", 1 << 10, MAX_MESSAGE),
            ("batch_timeout_seconds", 0, 60),
            ("stream_size", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} must be {least} to {most} (got {value!r})")
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression must be none or gzip (got {self.compression!r})")

    @property
    def limits(self) -> SpoolLimits:
        """The part that is about the spool."""
        return SpoolLimits(self.spool_bytes, self.spool_age_seconds, self.disk_reserve_bytes)
