"""A node's statistics for Prometheus: what `EdgeNode.stats` says, and how long answers took."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.decide.answer import Answer
from edge.sources.counts import FrameOutcome, SourceState
from edge.tally import NodeStats
from servicekit.telemetry.histograms import Histograms
from servicekit.telemetry.metrics_server import MetricsServer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class NodeMetrics(Collector):
    """Serves a node's statistics at `http://<listen>/metrics` until it is closed.

    Args:
        listen: host:port or [IPv6]:port; port 0: any free one, see `address`.
        stats: returns the node's statistics as they are now.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, listen: str, stats: Callable[[], NodeStats]) -> None:
        registry = CollectorRegistry()
        self._stats = stats
        seconds = Histograms(
            "sightline_edge_answer_seconds",
            "Time until the device or the cloud answered, and all in all, s",
            ("part",),
            _SECONDS,
            registry,
        )
        self._device, self._cloud, self._total = (
            seconds.of(part) for part in ("device", "cloud", "total")
        )
        registry.register(self)
        self._server = MetricsServer(listen, registry)

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        return self._server.address

    def answered(self, answer: Answer) -> None:
        """Take an answer's times in."""
        self._total.observe(answer.total_milliseconds / 1e3)
        if answer.device_milliseconds is not None:
            self._device.observe(answer.device_milliseconds / 1e3)
        if answer.cloud_milliseconds is not None:
            self._cloud.observe(answer.cloud_milliseconds / 1e3)

    def close(self) -> None:
        """End the server and frees its port."""
        self._server.close()

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the registry is this node's own, and no name is there twice."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        stats = self._stats()
        yield from _images(stats)
        yield from _asking(stats)
        yield from _log(stats)
        yield from _sources(stats)


def _counter(name: str, help_: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"sightline_edge_{name}", help_, labels=labels)


def _gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sightline_edge_{name}", help_, labels=labels)


def _images(stats: NodeStats) -> Iterator[Metric]:
    images = _counter(
        "pictures", "Images by who answered: device, cloud or nobody; and why", "by", "reason"
    )
    images.add_metric(("device", ""), stats.pictures.by_device)
    for why, count in stats.pictures.by_cloud.items():
        images.add_metric(("cloud", why), count)
    for reason, count in stats.pictures.failed.items():
        images.add_metric(("nobody", reason), count)
    yield images
    for name, count, help_ in (
        ("cloud_bytes", stats.pictures.cloud_bytes, "Bytes of images that the cloud answered"),
        ("cloud_bytes_saved", stats.pictures.cloud_bytes_saved, "Bytes that shrinking them saved"),
    ):
        family = _counter(name, help_)
        family.add_metric((), count)
        yield family


def _asking(stats: NodeStats) -> Iterator[Metric]:
    asking = stats.coordinator
    retries = _counter("cloud_retries", "Tries at the cloud that were made again")
    retries.add_metric((), asking.retries)
    yield retries
    opened = _counter("breaker_opened", "How often the cloud's circuit breaker opened")
    opened.add_metric((), asking.breaker_opened)
    yield opened
    state = _gauge("breaker_state", "1 for the state that the circuit breaker is in", "state")
    for name in ("closed", "open", "half_open"):
        state.add_metric((name,), float(asking.breaker == name))
    yield state


def _log(stats: NodeStats) -> Iterator[Metric]:
    log = stats.logger
    for name, count, help_ in (
        ("logged", log.logged, "Predictions that the log took, dropped ones included"),
        ("spooled", log.spooled, "Of them, those that are on the disk, or lost for good"),
        ("sent", log.sent, "Predictions and gaps put on the wire, those sent again included"),
        ("resent", log.retried, "Of the sent, those that had been sent before"),
        ("send_failures", log.failed, "Calls to the ingest service that failed"),
        ("committed", log.committed, "Predictions that the ingest service has"),
        ("rejected", log.rejected, "Of the committed, those that broke a rule"),
    ):
        family = _counter(f"log_{name}", help_)
        family.add_metric((), count)
        yield family
    dropped = _counter("log_dropped", "Predictions that will never be sent", "reason")
    for reason, count in log.dropped.items():
        dropped.add_metric((reason,), count)
    yield dropped
    for name, value, help_ in (
        ("backlog", log.backlog, "Sequences that wait in the spool for the ingest service"),
        ("in_memory", log.in_memory, "Predictions that wait in memory for the spool"),
    ):
        gauge = _gauge(f"log_{name}", help_)
        gauge.add_metric((), value)
        yield gauge


def _sources(stats: NodeStats) -> Iterator[Metric]:
    frames = _counter("source_frames", "Frames of a source, by what became of them", "source", "to")
    waiting = _gauge("source_waiting", "Frames that wait to be answered", "source")
    reconnects = _counter("source_reconnects", "How often a source was lost", "source")
    state = _gauge("source_state", "1 for the state that a source is in", "source", "state")
    for name, source in stats.sources.items():
        for outcome in FrameOutcome:
            frames.add_metric((name, outcome), getattr(source, outcome))
        waiting.add_metric((name,), source.waiting)
        reconnects.add_metric((name,), source.reconnects)
        for one in SourceState:
            state.add_metric((name, one), float(source.state is one))
    yield from (frames, waiting, reconnects, state)
