"""Metrics of the console for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ConsoleMetrics:
    """Counts of requests by route and status, their times, and what is open now.

    Args:
        registry: registry that gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "sightline_console_requests",
            "Requests that ended, by route and HTTP status",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sightline_console_request_seconds",
            "Time from a request's arrival to the end of its answer, s; /live is left out",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "sightline_console_requests_in_flight",
            "Requests that are answered now: reads and uploads",
            ["kind"],
            registry=registry,
        )
        self.live = Gauge(
            "sightline_console_live_streams", "Open event streams of /live", registry=registry
        )
        self.left_out = Counter(
            "sightline_console_live_left_out",
            "Predictions that event streams of /live counted and left out",
            registry=registry,
        )

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count one request.

        Args:
            route: pattern of the route, such as `/stats`; `other` for none.
            status: HTTP status of its answer.
            seconds: its duration, s.
        """
        self._requests.labels(route, str(status)).inc()
        if route != "/live":
            self._seconds.labels(route).observe(seconds)
