"""The circuit breaker and the retry tokens that the requests of one coordinator share.

The circuit breaker follows M. Nygard ("Release It!", 2007). The maintained libraries (pybreaker,
purgatory, circuitbreaker) wrap one call and read the system's clock. Here a request is a call with
retries that several threads may cancel, and tests control the time. The retry tokens are gRPC's
retry throttling (proposal A6), for retries that gRPC itself does not make.
"""

import threading
import time
from dataclasses import dataclass
from enum import StrEnum

import grpc

from edge.decide.policy import Policy
from servicekit.errors import Category, SightlineError

_CLOUD_FAILURES = (Category.NETWORK, Category.TIMEOUT, Category.SERVER)
"""Categories of errors that the cloud or the network caused; the others are the request's fault."""


class BreakerState(StrEnum):
    """The state of a circuit breaker.

    Example:
        >>> from sightline import BreakerState, InferenceClient, InferenceCoordinator
        >>> from sightline import CloudError, Mode, Policy
        >>> policy = Policy(mode=Mode.CLOUD, timeout=0.5, cloud_reserve=0.0, breaker_failures=1)
        >>> with (
        ...     InferenceClient("127.0.0.1:1") as client,  # no service listens on this port
        ...     InferenceCoordinator(None, client, policy) as coordinator,
        ... ):
        ...     try:
        ...         answer = coordinator.ask("photo.jpg")
        ...     except CloudError:
        ...         print(coordinator.breaker is BreakerState.OPEN)
        True
    """

    CLOSED = "closed"
    """Requests may be sent to the cloud."""
    OPEN = "open"
    """No request is sent to the cloud."""
    HALF_OPEN = "half_open"
    """One probe request at a time may be sent."""


@dataclass(frozen=True, slots=True)
class Permit:
    """The permission to send one request to the cloud, which `Breaker.release` ends."""

    epoch: int
    probe: bool


class Breaker:
    """A circuit breaker that opens after consecutive failures and probes after a pause.

    Args:
        failures: consecutive failures after which it opens, >= 1.
        seconds: time after which an open breaker permits a probe, > 0.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._opened_at: float | None = None
        self._epoch = 0  # results of requests from before a change of state are ignored
        self._probing = False
        self.opened = 0
        """Number of times it has opened."""

    def state(self, now: float) -> BreakerState:
        """Return the state at the time `now`."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.opens_in(now) <= 0 else BreakerState.OPEN

    def opens_in(self, now: float) -> float:
        """Return the seconds until a probe is permitted; 0 or less: it is, or it is closed."""
        return 0.0 if self._opened_at is None else self._opened_at + self._seconds - now

    def acquire(self, now: float) -> Permit | None:
        """Return a permit for one request to the cloud; None: the breaker is open."""
        if self._opened_at is None:
            return Permit(self._epoch, probe=False)
        if self._probing or self.opens_in(now) > 0:
            return None
        self._probing = True
        return Permit(self._epoch, probe=True)

    def release(self, permit: Permit, answered: bool | None, now: float) -> None:
        """Release a permit with the result of its request.

        Args:
            permit: the permit that `acquire` returned.
            answered: True if the cloud answered, False if it failed; None: the result says nothing
                about the cloud, because the request was cancelled or invalid.
            now: the time at which the request ended.
        """
        if permit.epoch != self._epoch:
            return
        if permit.probe:
            self._probing = False
        if answered is None:
            return
        if answered:
            self._failures = 0
            if permit.probe:
                self._opened_at = None
                self._epoch += 1
            return
        self._failures += 1
        if permit.probe or self._failures >= self._limit:
            self._opened_at = now
            self._failures = 0
            self._epoch += 1
            self.opened += 1


class RetryTokens:
    """A token bucket as in gRPC's retry throttling (proposal A6). Not thread-safe.

    Args:
        capacity: number of tokens at the start and at most, >= 1.
        ratio: fraction of a token that an answer adds.
    """

    def __init__(self, capacity: int, ratio: float) -> None:
        self._capacity = capacity
        self._ratio = ratio
        self.left = float(capacity)
        """Number of tokens left."""

    def failed(self) -> bool:
        """Remove a token for a failed try; return True if a retry is allowed."""
        self.left = max(self.left - 1.0, 0.0)
        return self.left > self._capacity / 2

    def answered(self) -> None:
        """Add a fraction of a token for an answer."""
        self.left = min(self.left + self._ratio, float(self._capacity))


class CloudGate:
    """The breaker and the retry tokens of one coordinator, on the system's clock. Thread-safe.

    Args:
        policy: has their parameters.
    """

    def __init__(self, policy: Policy) -> None:
        self._lock = threading.Lock()
        self._breaker = Breaker(policy.breaker_failures, policy.breaker_seconds)
        self._tokens = RetryTokens(policy.retry_tokens, policy.retry_token_ratio)

    def acquire(self) -> Permit:
        """Return a permit for one request to the cloud.

        Raises:
            SightlineError: UNAVAILABLE, reason `CIRCUIT_OPEN`: the breaker is open.
        """
        with self._lock:
            now = time.monotonic()
            permit = self._breaker.acquire(now)
            seconds = max(self._breaker.opens_in(now), 0.0)
        if permit is not None:
            return permit
        raise SightlineError(
            grpc.StatusCode.UNAVAILABLE,
            "CIRCUIT_OPEN",
            f"the circuit breaker of the cloud is open for another {seconds:.1f} s",
            retry_after=seconds,
        )

    def failed(self, error: SightlineError) -> bool:
        """Count a failed try; return True if the tokens allow a retry."""
        if error.category not in _CLOUD_FAILURES:
            return True
        with self._lock:
            return self._tokens.failed()

    def release(self, permit: Permit, verdict: SightlineError | bool | None) -> None:
        """Release a permit with the result of its request.

        Args:
            permit: the permit that `acquire` returned.
            verdict: True: the cloud answered; else the error of the last try; None: the request
                was cancelled.
        """
        if isinstance(verdict, SightlineError):
            verdict = False if verdict.category in _CLOUD_FAILURES else None
        with self._lock:
            if verdict:
                self._tokens.answered()
            self._breaker.release(permit, verdict, time.monotonic())

    @property
    def state(self) -> BreakerState:
        """The state of the circuit breaker."""
        with self._lock:
            return self._breaker.state(time.monotonic())

    @property
    def opened(self) -> int:
        """The number of times the circuit breaker has opened."""
        return self._breaker.opened

    @property
    def tokens_left(self) -> float:
        """The number of retry tokens left."""
        return self._tokens.left
