"""Counters of a node's answers and failures, and percentiles of its latencies."""

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.decide.answer import Answer
from edge.decide.counters import CoordinatorStats
from edge.log.stats import LoggerStats
from edge.percentile import nearest_rank
from edge.records import CloudReason, Source
from edge.sources.counts import SourceStats
from servicekit.errors import SightlineError

_WINDOW = 1024  # number of latest answers that the percentiles cover


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of a latency in milliseconds over the latest 1024 answers (nearest rank).

    None: there is no such answer yet.
    """

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts and latencies of a node's images so far."""

    by_device: int
    """Images that the device answered."""
    by_cloud: Mapping[CloudReason, int]
    """Images that the cloud answered, by the reason why it was asked."""
    failed: Mapping[str, int]
    """Images without an answer, by the error's reason, or its class if it has no reason."""
    fallback_rate: float
    """Share of the answers that came from the cloud, 0 to 1; 0 without an answer."""
    device_milliseconds: Latency
    """Times until the device answered or its answer was dropped."""
    cloud_milliseconds: Latency
    """Times from the first try at the cloud to its answer."""
    total_milliseconds: Latency
    """Times from the request to the answer."""
    cloud_bytes: int
    """Image bytes sent to the cloud for the answers that it gave."""
    cloud_bytes_saved: int
    """Image bytes saved by downscaling."""

    @property
    def answered(self) -> int:
        """The number of images that the device or the cloud answered."""
        return self.by_device + sum(self.by_cloud.values())


@dataclass(frozen=True, slots=True)
class NodeStats:
    """The statistics of a node: its images, sources, coordinator and logger.

    Example:
        >>> from sightline import EdgeNode, EdgeSettings
        >>> settings = EdgeSettings(
        ...     mode="device",
        ...     device_model="model.onnx",
        ...     spool_dir="spool",
        ...     ingest_target="127.0.0.1:1",  # no service listens there
        ... )
        >>> with EdgeNode.from_settings(settings) as node:
        ...     answer = node.process("photo.jpg")
        ...     stats = node.stats()
        >>> stats.pictures.by_device, stats.pictures.fallback_rate, stats.logger.logged
        (1, 0.0, 1)
    """

    pictures: Counts
    sources: Mapping[str, SourceStats]
    """Counts by source name, for the sources of `run` and `arun`."""
    coordinator: CoordinatorStats
    logger: LoggerStats


class Tally:
    """Counters of answers and failures. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_device = 0
        self._by_cloud: Counter[CloudReason] = Counter()
        self._failed: Counter[str] = Counter()
        self._device: deque[float] = deque(maxlen=_WINDOW)
        self._cloud: deque[float] = deque(maxlen=_WINDOW)
        self._total: deque[float] = deque(maxlen=_WINDOW)
        self._cloud_bytes = 0
        self._cloud_bytes_saved = 0

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        with self._lock:
            self._total.append(answer.total_milliseconds)
            self._cloud_bytes += answer.cloud_bytes
            self._cloud_bytes_saved += answer.cloud_bytes_saved
            if answer.device_milliseconds is not None:
                self._device.append(answer.device_milliseconds)
            if answer.cloud_milliseconds is not None:
                self._cloud.append(answer.cloud_milliseconds)
            if answer.source is Source.DEVICE or answer.cloud_reason is None:
                self._by_device += 1
            else:
                self._by_cloud[answer.cloud_reason] += 1

    def failed(self, error: Exception) -> None:
        """Count an image without an answer."""
        reason = error.reason if isinstance(error, SightlineError) else type(error).__name__
        with self._lock:
            self._failed[reason] += 1

    def counts(self) -> Counts:
        """Return the counts so far."""
        with self._lock:
            device, cloud, total = tuple(self._device), tuple(self._cloud), tuple(self._total)
            by_cloud, failed = dict(self._by_cloud), dict(self._failed)
            by_device = self._by_device
            sent, saved = self._cloud_bytes, self._cloud_bytes_saved
        fallbacks = sum(by_cloud.values())
        return Counts(
            by_device=by_device,
            by_cloud=by_cloud,
            failed=failed,
            fallback_rate=fallbacks / (by_device + fallbacks) if fallbacks else 0.0,
            device_milliseconds=_latency(device),
            cloud_milliseconds=_latency(cloud),
            total_milliseconds=_latency(total),
            cloud_bytes=sent,
            cloud_bytes_saved=saved,
        )


def _latency(milliseconds: Sequence[float]) -> Latency:
    ordered = sorted(milliseconds)
    return Latency(*(nearest_rank(ordered, share) for share in (0.50, 0.95, 0.99)))
