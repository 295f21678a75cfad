"""Age of other owners' unrenewed claims, by this process's own clock. Pure.

A lease is a duration, not a date, so that a wrong clock, here or at the owner, does not change it.
A live owner renews its claim well within a lease. A claim whose version has not changed for a lease
therefore belongs to an owner that is dead or stopped, and may be taken over. (The version is called
record version number in Amazon's DynamoDB lock client.)
"""

from collections.abc import Iterable

from inference_service.idempotency.store import ClaimVersion


class LeaseWatch:
    """A record of when each claim was first seen with its current version.

    Args:
        lease_seconds: how long an owner may leave its claim unrenewed, > 0.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease = lease_seconds
        self._seen: dict[bytes, tuple[ClaimVersion, float]] = {}

    def is_over(self, key: bytes, version: ClaimVersion, now: float) -> bool:
        """Observe a claim, and return True if it has been unrenewed for a lease.

        Args:
            key: the claimed key.
            version: current version of the claim.
            now: time on a monotonic clock, always the same one, s.
        """
        return self._unchanged(key, version, now) >= self._lease

    def look(
        self, pending: Iterable[tuple[bytes, ClaimVersion]], now: float, abandoned_after: float
    ) -> list[tuple[bytes, ClaimVersion]]:
        """Observe every pending claim, and forget all others.

        Args:
            pending: all pending claims with their keys.
            now: as for `is_over`.
            abandoned_after: seconds.

        Returns:
            The claims that have been unrenewed for `abandoned_after`.
        """
        claims = list(pending)
        known = {key for key, _ in claims}
        self._seen = {key: seen for key, seen in self._seen.items() if key in known}
        return [
            (key, version)
            for key, version in claims
            if self._unchanged(key, version, now) >= abandoned_after
        ]

    def _unchanged(self, key: bytes, version: ClaimVersion, now: float) -> float:
        """Return how long a claim has been seen with this version, s."""
        seen = self._seen.get(key)
        if seen is None or seen[0] != version:
            self._seen[key] = (version, now)
            return 0.0
        return now - seen[1]
