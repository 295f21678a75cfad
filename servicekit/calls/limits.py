"""How much each caller may send: calls, messages and bytes per second, no limit by default.

Token buckets of our own and no library: a moving window keeps an entry for every byte, and a window
of either kind refuses for ever what is larger than itself.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from servicekit.auth.caller import Caller
from servicekit.errors import QuotaViolation, SightlineError
from servicekit.quotas import Quota

_MAX_CALLERS = 10_000  # the least recent is forgotten beyond this, which gives it full buckets

_A_CALL: Mapping[str, float] = {"calls": 1, "messages": 1}
"""What a call costs when it begins: itself and its first message, but for the bytes."""


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
        self,
        messages_per_second: float,
        messages_burst: int,
        bytes_per_second: float,
        methods: Sequence[Quota] = (),
    ) -> None:
        """0 messages or bytes per second: no limit on them; `methods`: further quotas."""
        quotas = (
            Quota(messages_per_second, messages_burst, "messages"),
            Quota(bytes_per_second, bytes_per_second, "bytes"),
            *methods,
        )
        self._quotas = [quota for quota in quotas if quota.per_second]
        self._buckets: OrderedDict[str, _Buckets] = OrderedDict()

    @property
    def off(self) -> bool:
        """Whether nothing is limited."""
        return not self._quotas

    def charge_call(self, caller: Caller, now: float, method: str = "") -> None:
        """Charge a caller for a call that begins, and for its first message but the bytes.

        A call counts from then on, whether its message comes or not. Who is in debt, for a message
        that was larger than a bucket, is refused before the next one is read.

        Args:
            caller: who makes it.
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
        """Charge a caller for a message that has come.

        Args:
            caller: who sent it.
            size: bytes, >= 0.
            now: as in `charge_call`.
            method: as in `charge_call`.
            first: whether it is the first of its call, and counted with that.

        Raises:
            SightlineError: as `charge_call`; what the call has cost is given back with the first
                message, or waiting as long as told would not be enough.
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

    def _costs(self, method: str, given: Mapping[str, float]) -> list[float]:
        return [given.get(q.unit, 0) if q.counts(method) else 0 for q in self._quotas]

    def _charge(self, caller: Caller, now: float, method: str, given: Mapping[str, float]) -> None:
        costs = self._costs(method, given)
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
    """Return how long until the bucket holds what this costs, s."""
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
