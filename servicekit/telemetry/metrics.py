"""Metrics of calls for Prometheus."""

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from servicekit.telemetry.call_end import caller_class, code_of
from servicekit.telemetry.histograms import Histogram, Histograms

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BY_METHOD = ("service", "method")


class _Series:
    """The values of one method; only the event loop's thread writes them."""

    __slots__ = ("labels", "running", "seconds", "totals")

    def __init__(self, labels: tuple[str, ...], seconds: Histogram) -> None:
        self.labels = labels
        self.seconds = seconds
        self.running = 0
        self.totals: dict[tuple[str, str], int] = {}
        """Calls that ended, by code and class of caller."""


class CallMetrics(Collector):
    """Guard that counts calls by code and caller, times them, and counts those in flight.

    Metrics: `sightline_grpc_requests_total{service,method,code,caller}`,
    `sightline_grpc_request_seconds{service,method}`,
    `sightline_grpc_requests_in_flight{service,method}`. `caller` is the kind of credential, see
    `caller_class`: the number of callers' names is not bounded.

    The values are plain numbers, and become metrics when they are scraped: prometheus_client's
    counters and gauges would cost a call several times as much.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histograms(
            "sightline_grpc_request_seconds",
            "Time from a call's arrival to its end, s",
            _BY_METHOD,
            _SECONDS,
            registry,
        )
        self._series: dict[str, _Series] = {}
        registry.register(self)

    async def __call__(
        self, method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Count and time one call."""
        series = self._series.get(method) or self._add(method)
        begun = time.perf_counter()
        series.running += 1
        try:
            response = await proceed()
            code = code_of(context)
        except BaseException as error:
            code = code_of(context, error)
            raise
        finally:
            series.running -= 1
            series.seconds.observe(time.perf_counter() - begun)
            ended = (code, caller_class())
            series.totals[ended] = series.totals.get(ended, 0) + 1
        return response

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, so that a registry detects duplicate names."""
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        totals, running = _families()
        for series in tuple(self._series.values()):
            running.add_metric(series.labels, series.running)
            for ended, count in tuple(series.totals.items()):
                totals.add_metric((*series.labels, *ended), count)
        yield totals
        yield running

    def _add(self, method: str) -> _Series:
        labels = tuple(method[1:].split("/", 1))
        series = self._series[method] = _Series(labels, self._seconds.of(*labels))
        return series


def _families() -> tuple[CounterMetricFamily, GaugeMetricFamily]:
    return (
        CounterMetricFamily(
            "sightline_grpc_requests_total",
            "Calls that ended, by status code and class of caller",
            labels=(*_BY_METHOD, "code", "caller"),
        ),
        GaugeMetricFamily(
            "sightline_grpc_requests_in_flight", "Calls that are running now", labels=_BY_METHOD
        ),
    )
