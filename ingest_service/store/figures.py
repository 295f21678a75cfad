"""Data types of the reads that count over time, over the frame, by confidence and by model version.

Read it with `protocol.py` before you write or change a store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

CONFIDENCE_BINS = 20
"""Number of bins of a confidence: bin b has those from b / 20 to (b + 1) / 20, the last also 1."""
MAX_SERIES_CLASSES = 20
MAX_FRAME_CLASSES = 20
MAX_CONFIDENCE_CLASSES = 100
MAX_VERSIONS = 1000

Quantiles = tuple[float, float, float]
"""p50, p95 and p99 of inference times, s."""
Bins = tuple[int, ...]
"""Detections by bin of confidence: `CONFIDENCE_BINS` numbers."""


@dataclass(slots=True)
class PredictionTally:
    """Counts of predictions."""

    predictions: int = 0
    defects: int = 0
    """Predictions with a defect."""
    with_verdict: int = 0
    """Predictions with a verdict, defect or not."""
    detections: int = 0
    from_cloud: int = 0
    """Predictions by the cloud."""


@dataclass(slots=True)
class SeriesPart:
    """The predictions of one bucket of time."""

    tally: PredictionTally = field(default_factory=PredictionTally)
    by_cloud_reason: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Predictions of the cloud by reason, most first: all, with a defect, with a verdict."""
    by_class: dict[str, int] = field(default_factory=dict)
    """Detections of the largest classes of the whole series, `MAX_SERIES_CLASSES` at most."""
    inference_seconds: Quantiles | None = None
    """None: no prediction has an inference time."""


@dataclass(frozen=True, slots=True)
class Series:
    """Counts over time."""

    parts: Mapping[int, SeriesPart]
    """By the number of the bucket since 1970; buckets without predictions are left out."""
    as_of_us: int | None
    """Time of the newest commit of the filter's devices, us since 1970; None: there is none."""


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Detections by the cell of a grid over the image that the centre of their box is in."""

    by_class: Mapping[str, tuple[int, ...]]
    """Detections of the largest classes in each cell, row by row from the top left; most first,
    `MAX_FRAME_CLASSES` at most."""
    predictions: int
    """Predictions that were read."""
    without_position: int
    """Detections of them without a box, or in an image of unknown size."""
    sampled: float
    """Share of the predictions that was read, in (0, 1]."""
    image_size: tuple[int, int]
    """The most frequent known width and height, pixels; 0, 0: no size is known."""


@dataclass(frozen=True, slots=True)
class ConfidenceCounts:
    """Detections by confidence, now and in a reference."""

    current: Bins
    reference: Bins


@dataclass(frozen=True, slots=True)
class Confidences:
    """Detections by confidence, now and in a reference, of all classes and by class."""

    everything: ConfidenceCounts
    by_class: Mapping[str, ConfidenceCounts]
    """Most detections of now first, `MAX_CONFIDENCE_CLASSES` at most."""


@dataclass(frozen=True, slots=True)
class Hours:
    """A range of whole hours: start <= time < end, UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """Counts of the predictions of one version of a model."""

    model_name: str
    model_version: str
    """Empty: not known."""
    tally: PredictionTally
    devices: int
    inference_seconds: Quantiles | None
    confidences: Bins
    first_captured_us: int
    """Microseconds since 1970."""
    last_captured_us: int


Versions = Sequence[VersionFigures]
"""Newest capture first, `MAX_VERSIONS` at most."""
