"""Where claims are kept: the interface of every store, for one process or many.

A claim is *pending* while its owner works, until its lease ends, and then *settled* with an outcome
until its time is over; after that the key is free again.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    ok: bool
    payload: bytes
    """The serialized response, or, if not `ok`, the serialized `google.rpc.Status`."""


@dataclass(frozen=True, slots=True)
class Record:
    """Who holds a key."""

    fingerprint: bytes
    until: float
    """When the lease ends (pending) or the outcome is forgotten (settled), Unix seconds."""
    outcome: Outcome | None
    """None: pending."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much a store holds."""

    rows: int
    """Claims, pending and settled, those whose time is over and that are still there included."""
    bytes: int
    """Room that they take, without room that is free for others."""


class Store(Protocol):
    """Keeps claims. Every method is atomic, also against other processes on the same store.

    Methods block (disk, network), may raise `StoreError`, and are called by one thread at a time.
    `tests.unit.inference_service.idempotency.conformance` is what every store must pass.
    """

    def together(self) -> AbstractContextManager[None]:
        """Makes what is done inside one transaction: all of it takes place, or nothing does.

        It may be committed without its caller learning of that, when a connection breaks. So all
        of it may be done again: `claim` by the owner finds the key its own.
        """

    def claim(
        self, key: bytes, *, fingerprint: bytes, owner: bytes, now: float, until: float
    ) -> Record | None:
        """Takes the key for the owner until then, if it is free or its time was over by `now`.

        Returns:
            None: the key is the owner's, perhaps since before. Else who holds it.
        """

    def renew(self, key: bytes, *, owner: bytes, until: float) -> bool:
        """Moves the end of the owner's lease, even one that ran out and that nobody took.

        Returns:
            False: the claim is not the owner's or not pending; nothing was changed.
        """

    def settle(self, key: bytes, *, owner: bytes, outcome: Outcome, until: float) -> bool:
        """Puts the outcome in, to be kept until then, if the claim is still the owner's.

        Returns:
            False: it is not, or it is settled; nothing was changed.
        """

    def release(self, key: bytes, *, owner: bytes) -> None:
        """Frees the key, if it is the owner's and pending."""

    def tidy(self, now: float) -> bool:
        """Does a bounded piece of cleaning, in some milliseconds.

        Forgets claims whose time was over by `now`, and the oldest outcomes, never a pending claim,
        while the store is larger than it may be; gives free room back.

        Returns:
            Whether there is more to do.
        """

    def size(self) -> Size:
        """Returns how much it holds."""

    def close(self) -> None:
        """Closes the store. The other methods must not be called afterwards."""


class StoreError(Exception):
    """The store does not work: a full or broken disk, a database that is locked or away."""
