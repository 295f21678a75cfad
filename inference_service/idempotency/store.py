"""The interface of claim stores, for one process or many.

A claim is *pending* while its owner works, and then *settled* with an outcome until that expires;
after that the key is free again. A pending claim that its owner no longer renews may be taken over:
see `lease_watch`. Times are seconds on the store's own clock (`ClaimStore.time`).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

ClaimVersion = tuple[bytes, float]
"""Owner and `until` of a pending claim; every renewal changes it."""


@dataclass(frozen=True, slots=True)
class ClaimOutcome:
    """The outcome of a call: its response or its error."""

    ok: bool
    payload: bytes
    """The serialized response, or the serialized `google.rpc.Status` if not `ok`."""


@dataclass(frozen=True, slots=True)
class Record:
    """The holder of a key, and its outcome."""

    fingerprint: bytes
    until: float
    """Expiry of the outcome (settled); changed by each renewal (pending)."""
    outcome: ClaimOutcome | None
    """None: pending."""
    owner: bytes = field(default=b"", compare=False)

    @property
    def version(self) -> ClaimVersion:
        """The version of a pending claim."""
        return self.owner, self.until


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a store."""

    rows: int
    """Number of claims, pending and settled, including expired ones that are not yet deleted."""
    bytes: int
    """Bytes that they occupy, without free pages."""


class ClaimStore(Protocol):
    """A store of claims. Every method is atomic, also against other processes on the same store.

    Methods block (disk, network), may raise `ClaimStoreError`, and are called by one thread at a
    time. Every store must pass `tests.unit.inference_service.idempotency.conformance`.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Execute the operations of the block in one transaction: all of them or none.

        If a connection breaks, a transaction may be committed although its caller gets an error.
        All of it may then be repeated: a repeated `claim` finds the key already owned.
        """

    def time(self, at_least: float = 0.0) -> float:
        """Advance the store's clock to `at_least` if it is behind, and return its time, s.

        Only processes that use the store advance it, by the time that has passed while they ran: it
        does not follow changes of the wall clock.
        """

    def claim(
        self,
        key: bytes,
        *,
        fingerprint: bytes,
        owner: bytes,
        now: float,
        until: float,
        over: ClaimVersion | None = None,
    ) -> Record | None:
        """Claim the key for the owner if it is free, or if its outcome has expired by `now`.

        A pending claim is taken over if its version is `over`: it has not been renewed since it was
        found unrenewed for a lease.

        Returns:
            None if the owner holds the key, possibly since before; else the other holder's record.
        """

    def find(self, key: bytes, *, now: float) -> Record | None:
        """Return the record of a key; None if it is free or its outcome has expired by `now`."""

    def pending(self) -> list[tuple[bytes, ClaimVersion]]:
        """Return key and version of every pending claim."""

    def renew(self, key: bytes, *, owner: bytes, until: float) -> bool:
        """Renew the owner's claim, to a later `until`.

        Returns:
            False if the claim belongs to another owner or is not pending; nothing is changed.
        """

    def settle(self, key: bytes, *, owner: bytes, outcome: ClaimOutcome, until: float) -> bool:
        """Store the outcome until `until`, if the owner still holds the claim.

        Returns:
            False if another owner holds it, or it is settled; nothing is changed.
        """

    def release(self, key: bytes, *, owner: bytes) -> bool:
        """Free the key, if the owner holds it and it is pending.

        Returns:
            False if not; nothing is changed.
        """

    def prune(self, now: float, latest: float) -> bool:
        """Delete a bounded number of outcomes, in a few milliseconds.

        Delete outcomes that have expired by `now`, and the oldest ones while the store exceeds its
        limit, never a pending claim; return free space to the system. An outcome that would expire
        after `latest`, e.g. because of a wrong clock, expires at `latest`.

        Returns:
            True if there is more to do.
        """

    def size(self) -> Size:
        """Return the size of the store."""

    def close(self) -> None:
        """Close the store. The other methods must not be called afterwards."""


class ClaimStoreError(Exception):
    """The store failed: a full or broken disk, a locked or unreachable database."""


class LeaseExpiredError(ClaimStoreError):
    """The store failed, and the claim has not been renewed for a lease."""
