"""How much each caller may send: messages and bytes per second, no limit by default.

Token buckets of our own and no library: a moving window keeps an entry for every byte, and a window
of either kind refuses for ever what is larger than itself.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from servicekit.auth.caller import Caller
from servicekit.errors import QuotaViolation, SightlineError

_MAX_CALLERS = 10_000  # the least recent is forgotten beyond this, which gives it full buckets


@dataclass(frozen=True, slots=True)
class Quota:
    """What a bucket holds and how fast it fills."""

    per_second: float
    """Above 0."""
    burst: float
    """What may be taken at once after a rest, above 0."""
    unit: str
    """What is counted, in the plural."""

    def __str__(self) -> str:
        return f"{self.per_second:g} {self.unit} per second, {self.burst:g} at once"


@dataclass(slots=True)
class _Buckets:
    """A caller's, in the order of the quotas."""

    tokens: list[float]
    filled_at: float


class CallerLimits:
    """Token buckets, one per caller and quota. Pure: the time comes in as an argument.

    A bucket is full at first. A message passes if every bucket holds what it costs, and then takes
    it. What costs more than a whole bucket passes when the bucket is full, and leaves a debt: no
    message is too large to pass ever.
    """

    def __init__(
        self, messages_per_second: float, messages_burst: int, bytes_per_second: float
    ) -> None:
        """0 messages or bytes per second: no limit on them."""
        quotas = (
            Quota(messages_per_second, messages_burst, "messages"),
            Quota(bytes_per_second, bytes_per_second, "bytes"),
        )
        self._which = [number for number, quota in enumerate(quotas) if quota.per_second]
        self._quotas = [quotas[number] for number in self._which]
        self._buckets: OrderedDict[str, _Buckets] = OrderedDict()

    @property
    def off(self) -> bool:
        """Whether nothing is limited."""
        return not self._quotas

    def charge(self, caller: Caller, size: int, now: float) -> None:
        """Charges a caller for one message.

        Args:
            caller: who sent it.
            size: bytes, >= 0.
            now: seconds on any clock that does not go back.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `RATE_LIMITED`, with the seconds until it would
                have passed; nothing is charged.
        """
        costs = [(1, size)[number] for number in self._which]
        buckets = self._filled(caller.identity, now)
        waits = [
            _wait(quota, cost, tokens)
            for quota, cost, tokens in zip(self._quotas, costs, buckets.tokens, strict=True)
        ]
        if any(waits):
            raise _refusal(caller, self._quotas, waits)
        buckets.tokens = [t - cost for t, cost in zip(buckets.tokens, costs, strict=True)]

    def _filled(self, caller: str, now: float) -> _Buckets:
        full = [quota.burst for quota in self._quotas]
        buckets = self._buckets.setdefault(caller, _Buckets(full, now))
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        passed = now - buckets.filled_at
        buckets.tokens = [
            min(quota.burst, tokens + passed * quota.per_second)
            for quota, tokens in zip(self._quotas, buckets.tokens, strict=True)
        ]
        buckets.filled_at = now
        return buckets


def _wait(quota: Quota, cost: float, tokens: float) -> float:
    """Returns how long until the bucket holds what this costs, s."""
    wait = (min(cost, quota.burst) - tokens) / quota.per_second
    # Who has waited as long as it was told must not fail by a rounding error.
    return wait if wait > 1e-6 else 0.0


def _refusal(caller: Caller, quotas: Sequence[Quota], waits: Sequence[float]) -> SightlineError:
    exceeded = [str(quota) for quota, wait in zip(quotas, waits, strict=True) if wait]
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        f"caller {caller.name} is over its limit of {' and of '.join(exceeded)}",
        quotas=[QuotaViolation(f"caller:{caller.name}", quota) for quota in exceeded],
        retry_after=max(waits),
    )
