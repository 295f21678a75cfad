"""When the cloud is left alone: a circuit breaker, without a clock.

The pattern is M. Nygard's ("Release It!", 2007). Written here because kept libraries (pybreaker,
purgatory, circuitbreaker) wrap one call and read the system's clock, while here a question is a
call with retries that several threads may drop, and tests move the time.
"""

from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    """How a circuit breaker is."""

    CLOSED = "closed"
    """The cloud is asked."""
    OPEN = "open"
    """The cloud is left alone."""
    HALF_OPEN = "half_open"
    """One question at a time may try."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave to ask the cloud for one question; given back with `Breaker.settle`."""

    epoch: int
    probe: bool


class Breaker:
    """Opens after so many failures in a row, and lets one question try after a while.

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
        """Returns how it is."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.opens_in(now) <= 0 else BreakerState.OPEN

    def opens_in(self, now: float) -> float:
        """Returns the seconds until a question may try; 0 or less: one may, or it is closed."""
        return 0.0 if self._opened_at is None else self._opened_at + self._seconds - now

    def ask(self, now: float) -> Pass | None:
        """Returns leave to ask the cloud; None: it is left alone."""
        if self._opened_at is None:
            return Pass(self._epoch, probe=False)
        if self._probing or self.opens_in(now) > 0:
            return None
        self._probing = True
        return Pass(self._epoch, probe=True)

    def settle(self, leave: Pass, answered: bool | None, now: float) -> None:
        """Takes in what came of a question.

        Args:
            leave: what `ask` gave for it.
            answered: whether the cloud answered; None: that says nothing of the cloud, such as a
                question that was dropped or was wrong.
            now: when it ended.
        """
        if leave.epoch != self._epoch:
            return
        if leave.probe:
            self._probing = False
        if answered is None:
            return
        if answered:
            self._failures = 0
            if leave.probe:
                self._opened_at = None
                self._epoch += 1
            return
        self._failures += 1
        if leave.probe or self._failures >= self._limit:
            self._opened_at = now
            self._failures = 0
            self._epoch += 1
            self.opened += 1
