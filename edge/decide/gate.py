"""What all questions of a coordinator share about the cloud: breaker, tokens, counts."""

import threading
import time

import grpc

from edge.decide.breaker import Breaker, BreakerState, Pass
from edge.decide.policy import Policy
from edge.decide.retry_tokens import RetryTokens
from servicekit.errors import Category, SightlineError

_COUNTS = (Category.NETWORK, Category.TIMEOUT, Category.SERVER)
"""What says of the cloud that it is not well; the others say that the question is not."""


class CloudGate:
    """Breaker and retry tokens of one coordinator, on the system's clock; safe in threads.

    Args:
        policy: has their numbers.
    """

    def __init__(self, policy: Policy) -> None:
        self._lock = threading.Lock()
        self._breaker = Breaker(policy.breaker_failures, policy.breaker_seconds)
        self._tokens = RetryTokens(policy.retry_tokens, policy.retry_token_ratio)

    def ask(self) -> Pass:
        """Returns leave to ask the cloud for one question.

        Raises:
            SightlineError: UNAVAILABLE, reason `CIRCUIT_OPEN`: it is left alone for now.
        """
        with self._lock:
            now = time.monotonic()
            leave = self._breaker.ask(now)
            seconds = max(self._breaker.opens_in(now), 0.0)
        if leave is not None:
            return leave
        raise SightlineError(
            grpc.StatusCode.UNAVAILABLE,
            "CIRCUIT_OPEN",
            f"the cloud failed again and again, and is left alone for another {seconds:.1f} s",
            retry_after=seconds,
        )

    def failed(self, error: SightlineError) -> bool:
        """Takes in a try that failed; returns whether there are tokens for another."""
        if error.category not in _COUNTS:
            return True
        with self._lock:
            return self._tokens.failed()

    def settle(self, leave: Pass, verdict: SightlineError | bool | None) -> None:
        """Takes in what came of a question.

        Args:
            leave: what `ask` gave for it.
            verdict: True: an answer; the error of the last try; None: it was dropped.
        """
        if isinstance(verdict, SightlineError):
            verdict = False if verdict.category in _COUNTS else None
        with self._lock:
            if verdict:
                self._tokens.answered()
            self._breaker.settle(leave, verdict, time.monotonic())

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
