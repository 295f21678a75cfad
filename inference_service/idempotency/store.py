"""Where claims are kept: the interface of every store, for one process or many.

A claim is *pending* while its owner works, and then *settled* with an outcome until its time is
over; after that the key is free again. A pending claim whose owner no longer renews it may be taken
over: `lease_watch` says when. Times are seconds on the store's own clock (`ClaimStore.time`).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

ClaimVersion = tuple[bytes, float]
"""Owner and `until` of a pending claim: another one after each renewal."""


@dataclass(frozen=True, slots=True)
class ClaimOutcome:
    """How a call ended."""

    ok: bool
    payload: bytes
    """The serialized response, or, if not `ok`, the serialized `google.rpc.Status`."""


@dataclass(frozen=True, slots=True)
class Record:
    """Who holds a key."""

    fingerprint: bytes
    until: float
    """When the outcome is forgotten (settled); changed by each renewal (pending)."""
    outcome: ClaimOutcome | None
    """None: pending."""
    owner: bytes = field(default=b"", compare=False)

    @property
    def version(self) -> ClaimVersion:
        """The parts of a pending claim that a renewal changes."""
        return self.owner, self.until


@dataclass(frozen=True, slots=True)
class Size:
    """How much a store holds."""

    rows: int
    """Claims, pending and settled, those whose time is over and that are still there included."""
    bytes: int
    """Room that they take, without room that is free for others."""


class ClaimStore(Protocol):
    """Keeps claims. Every method is atomic, also against other processes on the same store.

    Methods block (disk, network), may raise `ClaimStoreError`, and are called by one thread at a time.
    `tests.unit.inference_service.idempotency.conformance` is what every store must pass.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Make what is done inside one transaction: all of it takes place, or nothing does.

        It may be committed without its caller learning of that, when a connection breaks. So all
        of it may be done again: `claim` by the owner finds the key its own.
        """

    def time(self, at_least: float = 0.0) -> float:
        """Move the store's clock to `at_least` if it is behind, and return its seconds.

        Only processes that use the store move it, by seconds that have passed while they ran: no
        wall clock that is set, at the start or later, makes it jump.
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
        """Take the key for the owner if it is free, or its outcome's time was over by `now`.

        A pending claim is taken over if its version is `over`, that is, if nobody has renewed it since
        it was found to have stood unrenewed for a lease.

        Returns:
            None: the key is the owner's, perhaps since before. Else who holds it.
        """

    def find(self, key: bytes, *, now: float) -> Record | None:
        """Return who holds a key; None: nobody, or its outcome's time was over by `now`."""

    def pending(self) -> list[tuple[bytes, ClaimVersion]]:
        """Return the key and the version of every pending claim."""

    def renew(self, key: bytes, *, owner: bytes, until: float) -> bool:
        """Change the version of the owner's claim, to a later `until`.

        Returns:
            False: the claim is not the owner's or not pending; nothing was changed.
        """

    def settle(self, key: bytes, *, owner: bytes, outcome: ClaimOutcome, until: float) -> bool:
        """Put the outcome in, to be kept until then, if the claim is still the owner's.

        Returns:
            False: it is not, or it is settled; nothing was changed.
        """

    def release(self, key: bytes, *, owner: bytes) -> bool:
        """Free the key, if it is the owner's and pending.

        Returns:
            False: it is not; nothing was changed.
        """

    def prune(self, now: float, latest: float) -> bool:
        """Do a bounded piece of cleaning, in some milliseconds.

        Forgets outcomes whose time was over by `now`, and the oldest ones while the store is larger
        than it may be, never a pending claim; gives free room back. An outcome that would be kept
        beyond `latest`, such as one that was written by a clock that was wrong, is kept until then.

        Returns:
            Whether there is more to do.
        """

    def size(self) -> Size:
        """Return how much it holds."""

    def close(self) -> None:
        """Close the store. The other methods must not be called afterwards."""


class ClaimStoreError(Exception):
    """The store does not work: a full or broken disk, a database that is locked or away."""


class LeaseOverError(ClaimStoreError):
    """The store does not work, and the claim has not been renewed for a lease."""
