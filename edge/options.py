"""The options of a logger with their defaults and bounds, which the settings of a node share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_type_hints

from pydantic import Field

from edge.records import MAX_SIZE
from edge.spool.caps import SpoolLimits
from edge.wire import MAX_MESSAGE
from servicekit.contract_bounds import MAX_POLYGON_TOLERANCE
from servicekit.mask_formats import POLYGON_TOLERANCE, MaskFormat

Compression = Literal["none", "gzip"]
OnFull = Literal["block", "drop_oldest", "drop_newest"]

MemoryPredictions = Annotated[int, Field(ge=1, le=1_000_000)]
MemoryBytes = Annotated[int, Field(ge=MAX_SIZE, le=1 << 34)]
SpoolBytes = Annotated[int, Field(ge=1 << 20, le=1 << 50)]
SpoolAgeSeconds = Annotated[float, Field(ge=0, le=1 << 40)]
DiskReserveBytes = Annotated[int, Field(ge=0, le=1 << 50)]
BatchSize = Annotated[int, Field(ge=1, le=10_000)]
BatchBytes = Annotated[int, Field(ge=1 << 10, le=MAX_MESSAGE)]
BatchTimeoutSeconds = Annotated[float, Field(ge=0, le=60)]
StreamSize = Annotated[int, Field(ge=1, le=1_000_000)]
PolygonTolerance = Annotated[float, Field(ge=0, le=MAX_POLYGON_TOLERANCE)]


@dataclass(frozen=True)
class LogOptions:
    """Limits and sizes of a `PredictionLogger`.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> from sightline import LogOptions, PredictionLogger
        >>> options = LogOptions(spool_bytes=1 << 28, compression="gzip")
        >>> logger = PredictionLogger(
        ...     "127.0.0.1:1", device_id="gate-1", spool_dir="spool", options=options
        ... )
        >>> logger.close()
        True
    """

    memory_predictions: MemoryPredictions = 10_000
    """Predictions that may wait in memory for the spool, >= 1."""
    memory_bytes: MemoryBytes = 16 << 20
    """Bytes on the wire that may wait in memory, at least `records.MAX_SIZE`; objects need more."""
    spool_bytes: SpoolBytes = 1 << 30
    """Size at which the spool gives up its oldest predictions, at least 1 MiB."""
    spool_age_seconds: SpoolAgeSeconds = 30 * 86_400.0
    """Age at which a spooled prediction is given up. 0: never."""
    disk_reserve_bytes: DiskReserveBytes = 256 << 20
    """Free disk space at which the spool stops growing. 0: it grows until the disk is full."""
    batch_size: BatchSize = 32
    """Predictions in one message to the ingest service at most, 1 to 10 000."""
    batch_bytes: BatchBytes = 1 << 20
    """Bytes of one message at most, 1 KiB to 4 MiB; a larger prediction is sent alone."""
    batch_timeout_seconds: BatchTimeoutSeconds = 1.0
    """Maximum time that a spooled prediction waits for a full batch, 0 to 60 s."""
    stream_size: StreamSize = 24_576
    """Predictions in one stream, which is answered once they are committed, >= 1."""
    compression: Compression = "none"
    """Compression of messages: `gzip` uses less of the network and more of the device's CPU."""
    mask_format: MaskFormat = "polygon"
    """Format of the masks of logged `Results` (task segment): `polygon`, `rle` (COCO's run lengths,
    which are exact and keep holes) or `off`, which logs boxes only."""
    polygon_tolerance: PolygonTolerance = POLYGON_TOLERANCE
    """Largest distance between a polygon and the outline of its mask in pixels, 0 to 100."""

    def __post_init__(self) -> None:
        for name, minimum, maximum in _bounds():
            value = getattr(self, name)
            if not minimum <= value <= maximum:
                raise ValueError(f"{name} must be {minimum} to {maximum} (got {value!r})")
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression must be none or gzip (got {self.compression!r})")
        if self.mask_format not in get_args(MaskFormat):
            raise ValueError(f"mask_format must be polygon, rle or off (got {self.mask_format!r})")

    @property
    def limits(self) -> SpoolLimits:
        """The limits of the spool."""
        return SpoolLimits(self.spool_bytes, self.spool_age_seconds, self.disk_reserve_bytes)


def _bounds() -> Iterator[tuple[str, float, float]]:
    """Yield the name, minimum and maximum of each numeric option, both bounds inclusive."""
    for name, hint in get_type_hints(LogOptions, include_extras=True).items():
        for field in getattr(hint, "__metadata__", ()):
            minimum, maximum = field.metadata
            yield name, minimum.ge, maximum.le
