"""Counts and times every call for Prometheus, and serves the figures over HTTP."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

T = TypeVar("T")
_Context = grpc.aio.ServicerContext[Any, Any]
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class _Series:
    """The series of one method, found once."""

    in_flight: Gauge
    seconds: Histogram
    total: Callable[[str], Counter]
    """The counter of the calls that ended with a code, by its name."""


class CallMetrics:
    """Guard that counts calls by code, times them, and counts those in flight.

    Metrics: `sightline_grpc_requests_total{service,method,code}`,
    `sightline_grpc_request_seconds{service,method}`,
    `sightline_grpc_requests_in_flight{service,method}`.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        by_method = ("service", "method")
        self._total = Counter(
            "sightline_grpc_requests_total",
            "Calls that ended, by status code",
            (*by_method, "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "sightline_grpc_request_seconds",
            "Time from a call's arrival to its end, s",
            by_method,
            buckets=_BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "sightline_grpc_requests_in_flight",
            "Calls that are running now",
            by_method,
            registry=registry,
        )
        self._series: dict[str, _Series] = {}

    async def __call__(
        self, method: str, context: _Context, proceed: Callable[[], Awaitable[T]]
    ) -> T:
        """Counts and times one call."""
        series = self._series.get(method) or self._series_of(method)
        begun = time.perf_counter()
        code = grpc.StatusCode.UNKNOWN.name
        series.in_flight.inc()
        try:
            response = await proceed()
            code = _code_of(context)
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except asyncio.CancelledError:
            code = _why_cancelled(context)
            raise
        finally:
            series.in_flight.dec()
            series.seconds.observe(time.perf_counter() - begun)
            series.total(code).inc()
        return response

    def _series_of(self, method: str) -> _Series:
        labels = method[1:].split("/", 1)
        series = _Series(
            self._in_flight.labels(*labels),
            self._seconds.labels(*labels),
            # The look-up of labelled children is most of what counting costs.
            functools.cache(lambda code: self._total.labels(*labels, code)),
        )
        self._series[method] = series
        return series


def _code_of(context: _Context) -> str:
    code: Any = context.code()  # gRPC gives the number where the handler set none or aborted
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code or 0, grpc.StatusCode.UNKNOWN.name)


def _why_cancelled(context: _Context) -> str:
    if context.time_remaining() == 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED.name
    return grpc.StatusCode.CANCELLED.name


class MetricsServer:
    """Prometheus metrics over HTTP, until closed."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        host, _, port = listen.rpartition(":")
        self._server, self._thread = start_http_server(
            int(port), host.strip("[]"), registry=registry
        )
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Ends the server and frees its port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(listen: str, registry: CollectorRegistry) -> MetricsServer:
    """Serves the registry at `http://<listen>/metrics`.

    Args:
        listen: host:port or [IPv6]:port; port 0: any free one, see `address`.
        registry: what is served.

    Raises:
        OSError: the address cannot be bound.
    """
    return MetricsServer(listen, registry)
