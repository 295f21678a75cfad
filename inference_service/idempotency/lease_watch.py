"""Age of other owners' unrenewed claims, by this process's own clock. Pure.

A lease is a length of time and no date: a clock that is wrong, here or at the owner, makes it
neither longer nor shorter. An owner that lives renews its claim well within a lease; so a claim
whose version has not changed for as long belongs to an owner that is dead or stopped, and may be
taken over. (Amazon's DynamoDB lock client calls the version a record version number.)
"""

from collections.abc import Iterable

from inference_service.idempotency.store import ClaimVersion


class LeaseWatch:
    """Remember when each claim was first seen as it is.

    Args:
        lease_seconds: how long an owner may leave its claim unrenewed, > 0.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease = lease_seconds
        self._seen: dict[bytes, tuple[ClaimVersion, float]] = {}

    def is_over(self, key: bytes, version: ClaimVersion, now: float) -> bool:
        """Note a claim, and return True if it has stood unrenewed for a lease.

        Args:
            key: that is claimed.
            version: of the claim as it is now.
            now: seconds on a clock that never jumps, always the same one.
        """
        return self._unchanged(key, version, now) >= self._lease

    def look(
        self, pending: Iterable[tuple[bytes, ClaimVersion]], now: float, abandoned_after: float
    ) -> list[tuple[bytes, ClaimVersion]]:
        """Note every claim that is pending and forget all others.

        Args:
            pending: all of them, and their keys.
            now: as for `is_over`.
            abandoned_after: seconds.

        Returns:
            Those that have stood unrenewed for so long.
        """
        claims = list(pending)
        known = {key for key, _ in claims}
        self._seen = {key: seen for key, seen in self._seen.items() if key in known}
        return [each for each in claims if self._unchanged(*each, now) >= abandoned_after]

    def _unchanged(self, key: bytes, version: ClaimVersion, now: float) -> float:
        """Return for how long a claim has been seen as it is, seconds."""
        seen = self._seen.get(key)
        if seen is None or seen[0] != version:
            self._seen[key] = (version, now)
            return 0.0
        return now - seen[1]
