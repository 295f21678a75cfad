"""Counters of a coordinator: retries, hedged requests and cascades."""

import threading
from dataclasses import dataclass

from edge.decide.cloud_health import BreakerState, CloudGate
from edge.decide.core import Coordination
from edge.decide.device_worker import DeviceWorker
from edge.decide.events import Fail, Finish
from edge.records import CloudReason, Source


@dataclass(frozen=True, slots=True)
class CoordinatorStats:
    """The counts of a coordinator so far, and the state of the device and the breaker.

    Example:
        >>> from sightline import InferenceCoordinator, Mode, OnnxDetector, Policy
        >>> policy = Policy(mode=Mode.DEVICE)
        >>> with InferenceCoordinator(OnnxDetector("model.onnx"), None, policy) as coordinator:
        ...     answer = coordinator.ask("photo.jpg")
        ...     stats = coordinator.stats()
        >>> stats.retries, stats.breaker, stats.device_hangs
        (0, <BreakerState.CLOSED: 'closed'>, False)
    """

    retries: int
    """Tries at the cloud after the first try of a request."""
    hedges: int
    """Requests sent to the cloud because the device exceeded its 95th percentile."""
    hedges_won: int
    """Hedged requests that the cloud answered first."""
    cascaded: int
    """Requests for which the device was unsure."""
    cascade_kept: int
    """Cascaded requests that kept the device's answer, because the cloud did not answer."""
    breaker: BreakerState
    """State of the cloud's circuit breaker."""
    breaker_opened: int
    """Number of times it has opened."""
    retry_tokens: float
    """Number of retry tokens left; see `Policy.retry_tokens`."""
    device_p95_seconds: float | None
    """95th percentile of the device's latest 200 runs; None: there were fewer than 20."""
    device_hangs: bool
    """True if the current run of the device's model exceeds the time budget of a request."""


class Counters:
    """Counters of one coordinator. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._retries = 0
        self._hedges = 0
        self._hedges_won = 0
        self._cascaded = 0
        self._cascade_kept = 0

    def ended(self, core: Coordination, end: Finish | Fail) -> None:
        """Count a request that was answered or failed."""
        attempts = end.answer.attempts if isinstance(end, Finish) else end.attempts
        cloud_tried = any(attempt.source is Source.CLOUD for attempt in attempts)
        by_cloud = isinstance(end, Finish) and end.answer.source is Source.CLOUD
        slow = core.cloud_reason is CloudReason.DEVICE_SLOW and cloud_tried
        unsure = core.cloud_reason is CloudReason.DEVICE_UNSURE
        if not (slow or unsure):
            return
        with self._lock:
            self._hedges += slow
            self._hedges_won += slow and by_cloud
            self._cascaded += unsure
            self._cascade_kept += unsure and not by_cloud

    def retried(self, count: int) -> None:
        """Count the retries of a request, which may have failed or been cancelled."""
        if count:
            with self._lock:
                self._retries += count

    def stats(self, gate: CloudGate, worker: DeviceWorker | None) -> CoordinatorStats:
        """Return the counts so far."""
        with self._lock:
            return CoordinatorStats(
                retries=self._retries,
                hedges=self._hedges,
                hedges_won=self._hedges_won,
                cascaded=self._cascaded,
                cascade_kept=self._cascade_kept,
                breaker=gate.state,
                breaker_opened=gate.opened,
                retry_tokens=gate.tokens_left,
                device_p95_seconds=worker.run_times.p95() if worker else None,
                device_hangs=worker.hangs if worker else False,
            )
