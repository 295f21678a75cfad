"""Prometheus metrics of the ingest service; servicekit has those of its calls.

Commits are counted where groups of messages commit, so a scrape reads numbers and no table. The
number of label values is bounded: reasons come from the code, and `device` has a bound of its own.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ingest_service.receive.rules import REASONS
from ingest_service.store.gap_reasons import GAP_REASONS
from ingest_service.store.housekeeping import TASKS, StepReport
from ingest_service.store.protocol import Changes, LedgerCheck
from servicekit.telemetry.histograms import Histograms

FORGET_SECONDS = 7 * 86_400.0
"""Time without a commit after which a device loses its series, s."""
_LOOK_SECONDS = 60.0
_CONFLICT_KINDS = ("content", "generation")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PREDICTIONS = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000)
_GAP_REASONS = tuple(filter(None, GAP_REASONS))
_OTHER = "other"
"""Label value of gap reasons that this version does not know: a client may send any number."""


def conflict_counter(registry: CollectorRegistry) -> Callable[[str], None]:
    """Return a function that counts a message refused with `SEQUENCE_CONFLICT`, by kind.

    Args:
        registry: the registry of the counter; every kind starts at 0.
    """
    counter = Counter(
        "sightline_ingest_sequence_conflicts_total",
        "Messages that claimed a sequence which was committed with another content",
        ("kind",),
        registry=registry,
    )
    by_kind = {kind: counter.labels(kind) for kind in _CONFLICT_KINDS}
    return lambda kind: by_kind[kind].inc()


class CommitMetrics:
    """A `CommitObserver` that counts what groups of messages commit.

    Call its methods from one thread.

    Args:
        registry: the registry of the metrics; every reason starts at 0.
        devices: records when each device was last received.
    """

    def __init__(self, registry: CollectorRegistry, devices: "DeviceTimes") -> None:
        self._devices = devices
        self._predictions = Counter(
            "sightline_ingest_predictions_total",
            "Predictions that were committed",
            registry=registry,
        )
        self._duplicates = Counter(
            "sightline_ingest_duplicates_total",
            "Predictions that had been committed before and were not stored again",
            registry=registry,
        )
        self._rejected = Counter(
            "sightline_ingest_rejected_total",
            "Predictions that broke a rule and are kept as rejected, by rule",
            ("reason",),
            registry=registry,
        )
        for reason in REASONS:
            self._rejected.labels(reason)
        gaps = Counter(
            "sightline_ingest_gap_sequences_total",
            "Sequences that devices declared they will never send, by reason",
            ("reason",),
            registry=registry,
        )
        self._gaps = {reason: gaps.labels(reason) for reason in (*_GAP_REASONS, _OTHER)}
        self._failures = Counter(
            "sightline_ingest_commit_failures_total",
            "Groups of messages that could not be committed; devices send them again",
            registry=registry,
        )
        self._last = Gauge(
            "sightline_ingest_last_commit_timestamp_seconds",
            "Time of the last commit of this process, s since 1970; 0: none yet",
            registry=registry,
        )
        self._seconds = Histograms(
            "sightline_ingest_commit_seconds",
            "Time from the begin of a group's transaction until it is durable, s",
            (),
            _SECONDS,
            registry,
        ).of()
        self._sizes = Histograms(
            "sightline_ingest_group_predictions",
            "Predictions of one group, duplicates and rejected ones included",
            (),
            _PREDICTIONS,
            registry,
        ).of()

    def committed(self, changes: Changes, at: float, seconds: float) -> None:
        """Count a committed group.

        Args:
            changes: what was committed; at least one spool.
            at: the server's wall clock at the commit, s since 1970.
            seconds: duration of the transaction, s.
        """
        accepted, rejected = changes.predictions.num_rows, changes.rejected.num_rows
        duplicates = pc.sum(changes.watermarks.column("duplicates")).as_py()
        self._predictions.inc(accepted)
        self._duplicates.inc(duplicates)
        if rejected:
            for reason, count in _counts(changes.rejected.column("reason")):
                self._rejected.labels(reason).inc(count)
        if changes.gaps.num_rows:
            for reason, count in _sequences(changes.gaps).items():
                self._gaps.get(reason, self._gaps[_OTHER]).inc(count)
        self._seconds.observe(seconds)
        self._sizes.observe(accepted + rejected + duplicates)
        self._last.set(at)
        self._devices.received(set(changes.watermarks.column("device_id").to_pylist()), at)

    def failed(self) -> None:
        """Count a group that was not committed."""
        self._failures.inc()


class DeviceTimes(Collector):
    """The time of the last commit of each device, for a bounded number of devices. Thread-safe.

    Devices that have a series keep it while they are received at least once in `FORGET_SECONDS`. A
    new device gets a series while there are fewer than `limit`; beyond it, its commits are counted
    in `sightline_ingest_device_series_refused_total`. So a flood of invented devices hides no
    device that was there before.

    Args:
        registry: the registry of the metrics.
        limit: maximum number of devices, >= 0; 0: none has a series.
        known: devices from before the start with their times, s since 1970, the latest first.
        now: the server's wall clock, s since 1970.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        limit: int,
        known: Iterable[tuple[str, float]],
        now: Callable[[], float],
    ) -> None:
        self._limit = limit
        self._now = now
        self._lock = threading.Lock()
        self._times = dict(list(known)[:limit])
        self._looked = 0.0
        self._refused = Counter(
            "sightline_ingest_device_series_refused_total",
            "Commits of devices without a series, as there are --metrics-devices of them",
            registry=registry,
        )
        registry.register(self)

    def received(self, devices: Iterable[str], at: float) -> None:
        """Record a commit of devices at a time, s since 1970."""
        with self._lock:
            for device in devices:
                if device in self._times or self._has_place(at):
                    self._times[device] = at
                elif self._limit:
                    self._refused.inc()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric without values, so that a registry detects a duplicate name."""
        yield _device_family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the current metric."""
        family = _device_family()
        with self._lock:
            self._forget(self._now())
            times = tuple(self._times.items())
        for device, at in times:
            family.add_metric((device,), at)
        yield family

    def _has_place(self, now: float) -> bool:
        if len(self._times) >= self._limit:
            self._forget(now)
        return len(self._times) < self._limit

    def _forget(self, now: float) -> None:
        """Remove the devices that were not received for long; look for them once a minute."""
        if abs(now - self._looked) < _LOOK_SECONDS:
            return
        self._looked = now
        if any(at < now - FORGET_SECONDS for at in self._times.values()):
            self._times = {d: at for d, at in self._times.items() if at >= now - FORGET_SECONDS}


class UpkeepMetrics:
    """Metrics of the background tasks, and of the ledger that one of them checks.

    Args:
        registry: the registry of the metrics; every task starts at 0.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        last = Gauge(
            "sightline_ingest_upkeep_last_success_timestamp_seconds",
            "When a background task last succeeded, s since 1970; 0: not yet",
            ("task",),
            registry=registry,
        )
        seconds = Gauge(
            "sightline_ingest_upkeep_last_duration_seconds",
            "How long a background task last took, s",
            ("task",),
            registry=registry,
        )
        failures = Counter(
            "sightline_ingest_upkeep_failures_total",
            "Failures of a background task; it is done again when it is due next",
            ("task",),
            registry=registry,
        )
        self._last = {task: last.labels(task) for task in TASKS}
        self._seconds = {task: seconds.labels(task) for task in TASKS}
        self._failures = {task: failures.labels(task) for task in TASKS}
        self._unbalanced = Gauge(
            "sightline_ingest_ledger_unbalanced_devices",
            "Devices whose sums do not add up to their committed sequences, at the last check",
            registry=registry,
        )
        self._difference = Gauge(
            "sightline_ingest_ledger_difference_sequences",
            "Sequences by which the sums of these devices differ, at the last check",
            registry=registry,
        )

    def step(self, report: StepReport) -> None:
        """Record a run of a task."""
        self._seconds[report.task].set(report.seconds)
        if report.failed:
            self._failures[report.task].inc()
        else:
            self._last[report.task].set(report.ended_at)

    def ledger(self, check: LedgerCheck) -> None:
        """Record a check of the ledger."""
        self._unbalanced.set(check.unbalanced_devices)
        self._difference.set(check.difference)


def register_sizes(registry: CollectorRegistry, sizes: Callable[[], Mapping[str, int]]) -> None:
    """Register the size of the database's files.

    Args:
        registry: the registry of the metric.
        sizes: returns the bytes of each kind of file; called at each scrape.
    """
    registry.register(_Sizes(sizes))


class _Sizes(Collector):
    """A collector of the sizes of the database's files."""

    def __init__(self, sizes: Callable[[], Mapping[str, int]]) -> None:
        self._sizes = sizes

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the current metric."""
        family = GaugeMetricFamily(
            "sightline_ingest_database_bytes",
            "Size of the database file and of its write-ahead log, bytes",
            labels=("file",),
        )
        for file, size in self._sizes().items():
            family.add_metric((file,), size)
        yield family


def _device_family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "sightline_ingest_device_last_received_timestamp_seconds",
        "When something of a device was last committed, s since 1970",
        labels=("device",),
    )


def _counts(reasons: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Yield each reason with its number."""
    for item in pc.value_counts(reasons).to_pylist():
        yield item["values"], item["counts"]


def _sequences(gaps: pa.Table) -> dict[str, int]:
    """Return the number of sequences in gaps by reason; they may exceed 64 bits together."""
    totals: dict[str, int] = {}
    columns = (gaps.column(name).to_pylist() for name in ("reason", "first_sequence"))
    for reason, first, last in zip(*columns, gaps.column("last_sequence").to_pylist(), strict=True):
        totals[reason] = totals.get(reason, 0) + last - first + 1
    return totals
