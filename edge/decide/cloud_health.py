"""What the requests of one coordinator share about the cloud: a circuit breaker and retry tokens.

The breaker's pattern is M. Nygard's ("Release It!", 2007). It is written here because kept
libraries (pybreaker, purgatory, circuitbreaker) wrap one call and read the system's clock, while
here a request is a call with retries that several threads may drop, and tests move the time. The
tokens are gRPC's retry throttling (proposal A6), for retries that gRPC itself does not make.
"""

import threading
import time
from dataclasses import dataclass
from enum import StrEnum

import grpc

from edge.decide.policy import Policy
from servicekit.errors import Category, SightlineError

_COUNTS = (Category.NETWORK, Category.TIMEOUT, Category.SERVER)
"""What says of the cloud that it is not well; the others say that the request is not."""


class BreakerState(StrEnum):
    """How a circuit breaker is.

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
    """The cloud is asked."""
    OPEN = "open"
    """The cloud is left alone."""
    HALF_OPEN = "half_open"
    """One request at a time may try."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to ask the cloud for one request; given back with `Breaker.release`."""

    epoch: int
    probe: bool


class Breaker:
    """Opens after so many failures in a row, and lets one request try after a while.

    Args:
        failures: in a row, >= 1.
        seconds: how long it stays open, > 0.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._opened_at: float | None = None
        self._epoch = 0  # verdicts on what was asked before it opened or closed count no more
        self._probing = False
        self.opened = 0
        """How often it has opened."""

    def state(self, now: float) -> BreakerState:
        """Return how it is."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.opens_in(now) <= 0 else BreakerState.OPEN

    def opens_in(self, now: float) -> float:
        """Return the seconds until a request may try; 0 or less: one may, or it is closed."""
        return 0.0 if self._opened_at is None else self._opened_at + self._seconds - now

    def acquire(self, now: float) -> Permit | None:
        """Return permit to ask the cloud; None: it is left alone."""
        if self._opened_at is None:
            return Permit(self._epoch, probe=False)
        if self._probing or self.opens_in(now) > 0:
            return None
        self._probing = True
        return Permit(self._epoch, probe=True)

    def release(self, permit: Permit, answered: bool | None, now: float) -> None:
        """Take in what came of a request.

        Args:
            permit: what `acquire` gave for it.
            answered: whether the cloud answered; None: that says nothing of the cloud, such as a
                request that was dropped or was wrong.
            now: when it ended.
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
    """gRPC's retry throttling (proposal A6), for retries that gRPC itself does not make.

    Args:
        most: tokens at the start, and the most there can be, >= 1.
        ratio: what an answer gives back of a token.
    """

    def __init__(self, most: int, ratio: float) -> None:
        self._most = most
        self._ratio = ratio
        self.left = float(most)
        """Tokens that are there now."""

    def failed(self) -> bool:
        """Take a failed try in; return whether it may be made again."""
        self.left = max(self.left - 1.0, 0.0)
        return self.left > self._most / 2

    def answered(self) -> None:
        """Take an answer in."""
        self.left = min(self.left + self._ratio, float(self._most))


class CloudGate:
    """Breaker and retry tokens of one coordinator, on the system's clock; safe in threads.

    Args:
        policy: has their numbers.
    """

    def __init__(self, policy: Policy) -> None:
        self._lock = threading.Lock()
        self._breaker = Breaker(policy.breaker_failures, policy.breaker_seconds)
        self._tokens = RetryTokens(policy.retry_tokens, policy.retry_token_ratio)

    def acquire(self) -> Permit:
        """Return permit to ask the cloud for one request.

        Raises:
            SightlineError: UNAVAILABLE, reason `CIRCUIT_OPEN`: it is left alone for now.
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
            f"the cloud failed again and again, and is left alone for another {seconds:.1f} s",
            retry_after=seconds,
        )

    def failed(self, error: SightlineError) -> bool:
        """Take in a try that failed; return whether there are tokens for another."""
        if error.category not in _COUNTS:
            return True
        with self._lock:
            return self._tokens.failed()

    def release(self, permit: Permit, verdict: SightlineError | bool | None) -> None:
        """Take in what came of a request.

        Args:
            permit: what `acquire` gave for it.
            verdict: True: an answer; the error of the last try; None: it was dropped.
        """
        if isinstance(verdict, SightlineError):
            verdict = False if verdict.category in _COUNTS else None
        with self._lock:
            if verdict:
                self._tokens.answered()
            self._breaker.release(permit, verdict, time.monotonic())

    @property
    def state(self) -> BreakerState:
        """How the circuit breaker is."""
        with self._lock:
            return self._breaker.state(time.monotonic())

    @property
    def opened(self) -> int:
        """How often the circuit breaker has opened."""
        return self._breaker.opened

    @property
    def tokens_left(self) -> float:
        """Retry tokens that are there now."""
        return self._tokens.left
