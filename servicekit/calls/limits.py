"""Rate limits per caller: calls, messages and bytes per second. By default there are none.

These are token buckets of our own: libraries use windows, and a moving window keeps an entry for
every byte, and any window refuses for ever what is larger than itself.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from servicekit.auth.caller import Caller
from servicekit.errors import QuotaViolation, SightlineError
from servicekit.quotas import Quota

_MAX_CALLERS = 10_000  # beyond this the least recent is forgotten, and gets full buckets

_A_CALL: Mapping[str, float] = {"calls": 1, "messages": 1}
"""Cost of a call when it begins: itself and its first message, without the bytes."""


@dataclass(slots=True)
class _Buckets:
    """The buckets of a caller, in the order of the quotas."""

    tokens: list[float]
    filled_at: float


class CallerLimits:
    """Token buckets, one per caller and quota. Pure: the time is an argument.

    A bucket is full at first. A message passes if every bucket contains its cost, which is then
    removed. A message that costs more than a whole bucket passes when the bucket is full and leaves
    a debt, so that every message can pass at some time.
    """

    def __init__(
        self,
        messages_per_second: float,
        messages_burst: int,
        bytes_per_second: float,
        methods: Sequence[Quota] = (),
    ) -> None:
        """Create full buckets; 0 per second: no limit; `methods`: further quotas."""
        quotas = (
            Quota(messages_per_second, messages_burst, "messages"),
            Quota(bytes_per_second, bytes_per_second, "bytes"),
            *methods,
        )
        self._quotas = [quota for quota in quotas if quota.per_second]
        self._buckets: OrderedDict[str, _Buckets] = OrderedDict()

    @property
    def off(self) -> bool:
        """True if there are no limits."""
        return not self._quotas

    def charge_call(self, caller: Caller, now: float, method: str = "") -> None:
        """Charge a caller for a call that begins and its first message, without the bytes.

        A call counts from then on, whether its message arrives or not. A caller in debt, because of
        a message larger than a bucket, is refused before its next message is read.

        Args:
            caller: the caller.
            now: seconds on any clock that does not go back.
            method: full name of the method.

        Raises:
            SightlineError: RESOURCE_EXHAUSTED, `RATE_LIMITED`, with the seconds until it would
                have passed; nothing is charged.
        """
        self._charge(caller, now, method, _A_CALL)

    def charge_message(
        self, caller: Caller, size: int, now: float, method: str = "", *, first: bool = True
    ) -> None:
        """Charge a caller for a message that has arrived.

        Args:
            caller: the sender.
            size: bytes, >= 0.
            now: as in `charge_call`.
            method: as in `charge_call`.
            first: True if it is the first message of its call, which is counted with the call.

        Raises:
            SightlineError: as `charge_call`. With the first message, the cost of the call is
                returned, because waiting for `retry_after` would not be enough otherwise.
        """
        if not first:
            self._charge(caller, now, method, {"bytes": size, "messages": 1})
            return
        try:
            self._charge(caller, now, method, {"bytes": size})
        except SightlineError:
            buckets = self._filled(caller.identity, now)
            costs = self._costs(method, _A_CALL)
            buckets.tokens = [t + cost for t, cost in zip(buckets.tokens, costs, strict=True)]
            raise

    def _costs(self, method: str, units: Mapping[str, float]) -> list[float]:
        return [units.get(q.unit, 0) if q.counts(method) else 0 for q in self._quotas]

    def _charge(self, caller: Caller, now: float, method: str, units: Mapping[str, float]) -> None:
        costs = self._costs(method, units)
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
    """Return the time until the bucket contains this cost, s."""
    wait = (min(cost, quota.burst) - tokens) / quota.per_second
    # A caller that has waited for `retry_after` must not fail by a rounding error.
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
