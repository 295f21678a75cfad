"""Credentials that a service has accepted lately, by their hash.

A service delays its answers to bad credentials, and for it every caller of the console is on one
connection. Requests whose credential nobody has accepted yet therefore have few places of their
own, so that a flood of them takes no place of those who are known.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

KNOWN_SECONDS = 600.0
"""Time after which a credential has to be accepted again, s."""
MAX_KNOWN = 4096


class KnownCredentials:
    """The credentials that were accepted last, at most `MAX_KNOWN`.

    Args:
        clock: seconds on a clock that does not go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accepted: OrderedDict[bytes, float] = OrderedDict()

    def accept(self, service: str, authorization: str | None) -> None:
        """Note that a service has accepted a credential; None: that it asks for none."""
        key = _key(service, authorization)
        self._accepted[key] = self._clock()
        self._accepted.move_to_end(key)
        if len(self._accepted) > MAX_KNOWN:
            self._accepted.popitem(last=False)

    def refuse(self, service: str, authorization: str | None) -> None:
        """Forget a credential that a service has refused."""
        self._accepted.pop(_key(service, authorization), None)

    def has(self, service: str, authorization: str | None) -> bool:
        """Return True if a service has accepted a credential lately."""
        accepted = self._accepted.get(_key(service, authorization))
        return accepted is not None and self._clock() - accepted < KNOWN_SECONDS


def _key(service: str, authorization: str | None) -> bytes:
    return hashlib.sha256(f"{service} {authorization or ''}".encode()).digest()
