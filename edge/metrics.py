"""Prometheus metrics of a node: the counts of `EdgeNode.stats` and histograms of latencies."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.decide.answer import Answer
from edge.sources.counts import FrameOutcome, SourceState
from edge.spool.entries import GapReason
from edge.tally import NodeStats
from servicekit.telemetry.histograms import Histograms
from servicekit.telemetry.metrics_server import MetricsServer

_NOTHING_DROPPED = {reason.name.lower(): 0 for reason in GapReason}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class NodeMetrics(Collector):
    """A server of a node's metrics at `http://<listen>/metrics`, until it is closed.

    Beside them, `/healthz` answers while the process works, and `/readyz` while the spool can be
    written: a node without a network is ready.

    Args:
        listen: host:port or [IPv6]:port; port 0 selects a free port, see `address`.
        stats: returns the node's current statistics.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, listen: str, stats: Callable[[], NodeStats]) -> None:
        registry = CollectorRegistry()
        self._stats = stats
        seconds = Histograms(
            "sightline_edge_answer_seconds",
            "Time until the device answered, the cloud answered, and the node answered, s",
            ("part",),
            _SECONDS,
            registry,
        )
        self._device, self._cloud, self._total = (
            seconds.of(part) for part in ("device", "cloud", "total")
        )
        registry.register(self)
        self._server = MetricsServer(listen, registry, self._not_ready)

    @property
    def address(self) -> str:
        """The address on which the server listens, host:port."""
        return self._server.address

    def answered(self, answer: Answer) -> None:
        """Add the times of an answer to the histograms."""
        self._total.observe(answer.total_milliseconds / 1e3)
        if answer.device_milliseconds is not None:
            self._device.observe(answer.device_milliseconds / 1e3)
        if answer.cloud_milliseconds is not None:
            self._cloud.observe(answer.cloud_milliseconds / 1e3)

    def close(self) -> None:
        """Stop the server and free its port."""
        self._server.close()

    async def _not_ready(self) -> list[str]:
        return ["spool (it cannot be written)"] if self._stats().logger.spool_error else []

    def describe(self) -> Iterator[Metric]:
        """Yield nothing: the registry is private, so it need not check for duplicate names."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics."""
        stats = self._stats()
        yield from _images(stats)
        yield from _cloud(stats)
        yield from _log(stats)
        yield from _sources(stats)


def _counter(name: str, help_: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"sightline_edge_{name}", help_, labels=labels)


def _gauge(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sightline_edge_{name}", help_, labels=labels)


def _images(stats: NodeStats) -> Iterator[Metric]:
    images = _counter(
        "pictures", "Images by who answered (device, cloud or nobody) and reason", "by", "reason"
    )
    images.add_metric(("device", ""), stats.pictures.by_device)
    for cloud_reason, count in stats.pictures.by_cloud.items():
        images.add_metric(("cloud", cloud_reason), count)
    for reason, count in stats.pictures.failed.items():
        images.add_metric(("nobody", reason), count)
    yield images
    for name, count, help_ in (
        ("cloud_bytes", stats.pictures.cloud_bytes, "Bytes of images sent to the cloud"),
        (
            "cloud_bytes_saved",
            stats.pictures.cloud_bytes_saved,
            "Bytes of images saved by downscaling",
        ),
    ):
        family = _counter(name, help_)
        family.add_metric((), count)
        yield family


def _cloud(stats: NodeStats) -> Iterator[Metric]:
    coordinator = stats.coordinator
    retries = _counter("cloud_retries", "Retries of requests to the cloud")
    retries.add_metric((), coordinator.retries)
    yield retries
    opened = _counter("breaker_opened", "Number of times the cloud's circuit breaker has opened")
    opened.add_metric((), coordinator.breaker_opened)
    yield opened
    state = _gauge("breaker_state", "1 for the current state of the circuit breaker", "state")
    for name in ("closed", "open", "half_open"):
        state.add_metric((name,), float(coordinator.breaker == name))
    yield state


def _log(stats: NodeStats) -> Iterator[Metric]:
    log = stats.logger
    for name, count, help_ in (
        ("logged", log.logged, "Predictions that were logged, dropped ones included"),
        ("spooled", log.spooled, "Logged predictions that were written to disk or dropped"),
        ("sent", log.sent, "Predictions and gaps that were sent, repetitions included"),
        ("resent", log.retried, "Predictions and gaps that were sent again"),
        ("send_failures", log.failed, "Calls to the ingest service that failed"),
        ("committed", log.committed, "Predictions that the ingest service has committed"),
        ("rejected", log.rejected, "Committed predictions that were rejected as invalid"),
    ):
        family = _counter(f"log_{name}", help_)
        family.add_metric((), count)
        yield family
    dropped = _counter("log_dropped", "Predictions that will never be sent", "reason")
    # Every reason from the start: an alert cannot see the increase of a series that is new.
    for name, count in {**_NOTHING_DROPPED, **log.dropped}.items():
        dropped.add_metric((name,), count)
    yield dropped
    left_out = _counter("log_left_out", "Parts of results that could not be logged", "part")
    for part, count in log.left_out.items():
        left_out.add_metric((part,), count)
    yield left_out
    for name, value, help_ in (
        ("backlog", log.backlog, "Sequences in the spool that are not committed yet"),
        ("in_memory", log.in_memory, "Predictions in memory that are not spooled yet"),
        ("spool_bytes", log.spool_bytes, "Size of the spool's content, bytes"),
        ("spool_limit_bytes", log.spool_limit_bytes, "Size at which the spool gives up the oldest"),
    ):
        gauge = _gauge(f"log_{name}", help_)
        gauge.add_metric((), value)
        yield gauge


def _sources(stats: NodeStats) -> Iterator[Metric]:
    frames = _counter("source_frames", "Frames of a source by outcome", "source", "to")
    waiting = _gauge("source_waiting", "Frames that are queued or being processed", "source")
    damaged = _counter("source_damaged_frames", "Frames that cannot be decoded", "source")
    missing = _counter(
        "source_missing_frames", "Frames that a file lists and that cannot be found", "source"
    )
    reconnects = _counter("source_reconnects", "Number of times a source was lost", "source")
    state = _gauge("source_state", "1 for the current state of a source", "source", "state")
    for name, source in stats.sources.items():
        for outcome in FrameOutcome:
            frames.add_metric((name, outcome), getattr(source, outcome))
        waiting.add_metric((name,), source.waiting)
        damaged.add_metric((name,), source.damaged)
        missing.add_metric((name,), source.missing)
        reconnects.add_metric((name,), source.reconnects)
        for source_state in SourceState:
            state.add_metric((name, source_state), float(source.state is source_state))
    yield from (frames, waiting, damaged, missing, reconnects, state)
