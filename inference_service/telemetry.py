"""What the inference service counts and times for Prometheus.

Labels are bounded: models are named by the repository and never by a request, and every other
label has the few values that are listed here. `servicekit.telemetry.metrics` counts calls.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from inference_service.serving import admission
from servicekit.telemetry.histograms import Histograms

logger = logging.getLogger(__name__)

STAGES = ("upload", "queue", "decode", "infer", "post")
"""Where the time of a request goes: the receipt of an uploaded image, the wait for a worker,
decoding and scaling, the run of the model, and reading its output."""
_STAGES = frozenset(STAGES)
EXPIRED = ("queue", "run", "cancelled")
"""Where an admitted member was when its deadline passed; or its caller gave up."""
IDEMPOTENCY = ("hit", "join", "mismatch", "lost_lease")
"""A kept answer was replayed; a twin in flight was waited for; a key came with another request; an
answer was too late for its lease, and somebody else may answer as well."""
_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

Infos = Callable[[], Iterable[tuple[str, str, str]]]
"""Tells the name, the version and the provider of every model that is loaded."""


class Telemetry:
    """The figures of one server; safe in several threads.

    Histograms can be added up over servers and their quantiles taken afterwards. Metrics, all with
    the prefix `sightline_inference_`:

    - `stage_seconds{model,stage}`, `request_seconds{model}`, `batch_rows{model}`: histograms;
    - `shed_total{reason}`, `expired_total{where}`, `idempotency_total{event}`,
      `model_load_failures_total{model}`: counters;
    - `queue_depth`, `running`, `idempotency_rows`, `idempotency_bytes`,
      `model_info{model,version,provider}`: gauges that are read when they are scraped, once the
      service has said where.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._stages = Histograms(
            "sightline_inference_stage_seconds",
            "Time that one image or tensor spent in one stage, s",
            ("model", "stage"),
            _SECONDS,
            registry,
        )
        self._totals = Histograms(
            "sightline_inference_request_seconds",
            "Time from the arrival of a request to its answer, s; without replays and failures",
            ("model",),
            _SECONDS,
            registry,
        )
        self._rows = Histograms(
            "sightline_inference_batch_rows",
            "Rows of one run of a model",
            ("model",),
            _ROWS,
            registry,
        )
        self._shed = _counters(
            registry,
            "sightline_inference_shed_total",
            "Requests that were refused because they could not be answered in time",
            "reason",
            sorted(admission.REASONS),
        )
        self._expired = _counters(
            registry,
            "sightline_inference_expired_total",
            "Images and tensors that were admitted and got no answer in time",
            "where",
            EXPIRED,
        )
        self._idempotency = _counters(
            registry,
            "sightline_inference_idempotency_total",
            "What idempotency keys did beside letting their first request through",
            "event",
            IDEMPOTENCY,
        )
        self._load_failures = Counter(
            "sightline_inference_model_load_failures_total",
            "Versions of a model that could not be loaded",
            ("model",),
            registry=registry,
        )

    def stage(self, model: str, stage: str, seconds: float) -> None:
        """Take in the time that one image or tensor spent in one of `STAGES`, s.

        Args:
            model: its name; empty: the stage (an upload) is no model's.
            stage: one of `STAGES`.
            seconds: >= 0.

        Raises:
            ValueError: there is no such stage.
        """
        if stage not in _STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)} (got {stage!r})")
        self._stages.of(model, stage).observe(seconds)

    def total(self, model: str, seconds: float) -> None:
        """Take in the time from the arrival of a request to its answer, s."""
        self._totals.of(model).observe(seconds)

    def batch(self, model: str, rows: int) -> None:
        """Take in a run of so many rows, >= 1."""
        self._rows.of(model).observe(rows)

    def shed(self, reason: str) -> None:
        """Count a request that was refused for one of `admission.REASONS`."""
        self._shed[reason].inc()

    def expired(self, where: str) -> None:
        """Count an image or tensor that was admitted and got no answer, by one of `EXPIRED`."""
        self._expired[where].inc()

    def idempotency(self, event: str) -> None:
        """Count what a key did, one of `IDEMPOTENCY`."""
        self._idempotency[event].inc()

    def load_failed(self, model: str) -> None:
        """Count a version of a model that could not be loaded."""
        self._load_failures.labels(model).inc()

    def queue(self, depth: Callable[[], int], running: Callable[[], int]) -> None:
        """Say where the members are known that wait, and those that are run.

        What is given to this method and the next two is called by the thread of each scrape.
        """
        self._gauge("queue_depth", "Images and tensors that wait for a worker", depth)
        self._gauge("running", "Images and tensors that are being worked on", running)

    def idempotency_table(self, rows: Callable[[], float], size: Callable[[], float]) -> None:
        """Say where the size of the idempotency store is known, in keys and in bytes."""
        self._gauge("idempotency_rows", "Idempotency keys that are kept", rows)
        self._gauge("idempotency_bytes", "Size of the store of idempotency keys, bytes", size)

    def models(self, infos: Infos) -> None:
        """Say where the loaded models are known."""
        self._registry.register(_ModelInfo(infos))

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"sightline_inference_{name}", text, registry=self._registry)
        gauge.set_function(_never_failing(name, read))


class _ModelInfo(Collector):
    """One sample of 1 per loaded version, so that those that are unloaded disappear."""

    def __init__(self, infos: Infos) -> None:
        self._infos = infos

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric as it is now."""
        family = GaugeMetricFamily(
            "sightline_inference_model_info",
            "Loaded versions of models, and the execution provider that runs each",
            labels=("model", "version", "provider"),
        )
        try:
            for info in self._infos():
                family.add_metric(info, 1.0)
        except Exception:
            logger.exception("cannot read which models are loaded")
        yield family


def _counters(
    registry: CollectorRegistry, name: str, text: str, label: str, values: Iterable[str]
) -> dict[str, Counter]:
    """Return a counter per value of its label; each is there from the start, as 0.

    A counter that only appears with its first event has no increase that an alert could see.
    """
    counter = Counter(name, text, (label,), registry=registry)
    return {value: counter.labels(value) for value in values}


def _never_failing(name: str, read: Callable[[], float]) -> Callable[[], float]:
    """Return the function with NaN for its failures: one figure must not cost all the others."""

    def value() -> float:
        try:
            return read()
        except Exception:
            logger.exception("cannot read the metric %s", name)
            return math.nan

    return value
