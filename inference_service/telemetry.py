"""Prometheus metrics of the inference service.

The number of label values is bounded: model names come from the repository and never from a
request, and the other labels have the values below. `servicekit.telemetry.metrics` counts calls.
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
"""Stages of a request: the receipt of an uploaded image, the wait for a worker, decoding and
scaling, the run of the model, and decoding of its output."""
_STAGES = frozenset(STAGES)
EXPIRED = ("queue", "run", "cancelled")
"""Stage of an admitted member when its deadline passed; or its caller cancelled."""
IDEMPOTENCY = ("hit", "join", "mismatch", "lost_lease")
"""A stored response was replayed; a call joined another one in flight; a key was used with another
request; a response came after its lease had expired, so another process may answer as well."""
_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

Infos = Callable[[], Iterable[tuple[str, str, str]]]
"""Function that returns name, version and provider of every loaded model."""


class Telemetry:
    """The metrics of one server. Thread-safe.

    Histograms can be added over servers before quantiles are computed. Metrics, with the prefix
    `sightline_inference_`:

    - `stage_seconds{model,stage}`, `request_seconds{model}`, `batch_rows{model}`: histograms;
    - `shed_total{reason}`, `expired_total{where}`, `idempotency_total{event}`,
      `model_load_failures_total{model}`: counters;
    - `queue_depth`, `running`, `idempotency_rows`, `idempotency_bytes`,
      `model_info{model,version,provider}`: gauges that are read at each scrape, once the service
      has registered their functions.
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
        """Record the time that one image or tensor spent in a stage, s.

        Args:
            model: name of the model; empty for the stage `upload`.
            stage: one of `STAGES`.
            seconds: >= 0.

        Raises:
            ValueError: the stage is unknown.
        """
        if stage not in _STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)} (got {stage!r})")
        self._stages.of(model, stage).observe(seconds)

    def total(self, model: str, seconds: float) -> None:
        """Record the time from the arrival of a request to its response, s."""
        self._totals.of(model).observe(seconds)

    def batch(self, model: str, rows: int) -> None:
        """Record a run of `rows` rows, >= 1."""
        self._rows.of(model).observe(rows)

    def shed(self, reason: str) -> None:
        """Count a refused request by its reason, one of `admission.REASONS`."""
        self._shed[reason].inc()

    def expired(self, where: str) -> None:
        """Count an admitted image or tensor that was not answered, by one of `EXPIRED`."""
        self._expired[where].inc()

    def idempotency(self, event: str) -> None:
        """Count an event of an idempotency key, one of `IDEMPOTENCY`."""
        self._idempotency[event].inc()

    def load_failed(self, model: str) -> None:
        """Count a model version that could not be loaded."""
        self._load_failures.labels(model).inc()

    def queue(self, depth: Callable[[], int], running: Callable[[], int]) -> None:
        """Register the functions that return the number of waiting and of running members.

        The functions of this method and the next two are called by the scraping thread.
        """
        self._gauge("queue_depth", "Images and tensors that wait for a worker", depth)
        self._gauge("running", "Images and tensors that are being worked on", running)

    def idempotency_table(self, rows: Callable[[], float], size: Callable[[], float]) -> None:
        """Register the functions that return the idempotency store's size, in keys and in bytes."""
        self._gauge("idempotency_rows", "Idempotency keys that are kept", rows)
        self._gauge("idempotency_bytes", "Size of the store of idempotency keys, bytes", size)

    def models(self, infos: Infos) -> None:
        """Register the function that returns the loaded models."""
        self._registry.register(_ModelInfo(infos))

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"sightline_inference_{name}", text, registry=self._registry)
        gauge.set_function(_never_failing(name, read))


class _ModelInfo(Collector):
    """A collector with one sample of 1 per loaded version; unloaded versions disappear."""

    def __init__(self, infos: Infos) -> None:
        self._infos = infos

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the current metric."""
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
    """Return a counter for each value of its label, each starting at 0.

    If a counter appeared with its first event only, an alert could not see that increase.
    """
    counter = Counter(name, text, (label,), registry=registry)
    return {value: counter.labels(value) for value in values}


def _never_failing(name: str, read: Callable[[], float]) -> Callable[[], float]:
    """Return the function with NaN for its failures: they must not break the whole scrape."""

    def value() -> float:
        try:
            return read()
        except Exception:
            logger.exception("cannot read the metric %s", name)
            return math.nan

    return value
