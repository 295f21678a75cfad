"""Histograms for Prometheus with a low cost per observation.

An observation takes about 3 us with prometheus_client's histogram, and a call makes six of them.
This one takes a tenth of that, and has the same format when it is scraped.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class Histogram:
    """A thread-safe histogram.

    Args:
        bounds: upper bounds of the buckets, rising; a value on a bound is within it. One more
            bucket, the last, has none.
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, value: float) -> None:
        """Count a value."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """Return the cumulative counts of the buckets, and the sum of the values."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class Histograms(Collector):
    """A metric with a histogram for every combination of labels in use.

    Args:
        name: the metric's, with its unit.
        documentation: one line for people.
        labels: names of the labels.
        bounds: see `Histogram`.
        registry: the registry that collects it.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._of: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)

    def of(self, *values: str) -> Histogram:
        """Return the histogram of these label values; their number must be bounded."""
        return self._of.get(values) or self._of.setdefault(values, Histogram(self._bounds))

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric without values, so that a registry detects a duplicate name."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric as it is now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        for values, histogram in tuple(self._of.items()):
            counts, total = histogram.read()
            family.add_metric(values, list(zip(bounds, counts, strict=True)), total)
        yield family
