"""The rules of idempotency: what a key is, what it is bound to, and where claims are kept.

Pure but for `Store`, which is the interface of what keeps the claims. A claim is *pending* while
its owner works, until its lease ends, and then *settled* with an outcome until its time is over;
after that the key is free again.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from inference_service.domain import Question
from servicekit.errors import SightlineError, invalid

METADATA_KEY = "idempotency-key"
REPLAYED_KEY = "idempotent-replayed"
_UUID_VERSION = 4


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


class Store(Protocol):
    """Keeps claims. Every method is atomic, also against other processes on the same store.

    Methods block (disk, network), may raise `StoreError`, and are called from one thread.
    """

    def claim(
        self, key: bytes, *, fingerprint: bytes, owner: bytes, now: float, until: float
    ) -> Record | None:
        """Takes the key for the owner until then, if it is free or its time was over by `now`.

        Returns:
            None: the key is the owner's. Else who holds it.
        """

    def settle(self, key: bytes, *, owner: bytes, outcome: Outcome, until: float) -> bool:
        """Puts the outcome in, to be kept until then, if the claim is still the owner's.

        Returns:
            False: it is not; nothing was changed.
        """

    def release(self, key: bytes, *, owner: bytes) -> None:
        """Frees the key, if it is the owner's and pending."""

    def close(self) -> None:
        """Closes the store. The other methods must not be called afterwards."""


class StoreError(Exception):
    """The store does not work: a full or broken disk, a database that is locked or away."""


def read_key(given: Sequence[str], *, caller: str, method: str) -> bytes | None:
    """Returns the key under which a call is claimed: a hash of caller, method and key.

    Args:
        given: every value of metadata `idempotency-key`.
        caller: who calls; another caller's key is another key.
        method: name of the RPC.

    Returns:
        32 bytes; None: the call has no key.

    Raises:
        SightlineError: INVALID_ARGUMENT, `IDEMPOTENCY_KEY_INVALID`: not one UUIDv4.
    """
    if not given:
        return None
    if len(given) > 1:
        rule = f"must be given once, was given {len(given)} times"
        raise invalid(METADATA_KEY, rule, reason="IDEMPOTENCY_KEY_INVALID")
    if not _is_uuid4(given[0]):
        rule = "must be a UUIDv4 such as 123e4567-e89b-42d3-a456-426614174000"
        raise invalid(METADATA_KEY, rule, reason="IDEMPOTENCY_KEY_INVALID")
    return _hash(caller, method, given[0].lower())


def fingerprint(question: Question) -> bytes:
    """Returns what a key is bound to: SHA-256 of model, version, parameters and pictures.

    Model and version count as they were asked for, so that a retry of a request for the default
    model stays the same when the default changes.
    """
    asked = question.parameters
    return _hash(
        question.model_name,
        question.model_version,
        [asked.confidence, asked.iou, asked.max_detections, asked.top_k],
        [[picture.image_id, picture.sha256.hex()] for picture in question.pictures],
    )


def key_reused() -> SightlineError:
    """Returns the error for a key that is bound to another request."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "IDEMPOTENCY_KEY_REUSED",
        f"{METADATA_KEY} was used with another model, parameters or pictures: use a new key",
    )


def twin_in_flight(retry_after: float) -> SightlineError:
    """Returns the error for a call whose twin is at work in another process."""
    return SightlineError(
        grpc.StatusCode.ABORTED,
        "IDEMPOTENCY_TWIN_IN_FLIGHT",
        f"a call with this {METADATA_KEY} is being answered: retry to get its answer",
        retry_after=retry_after,
    )


def store_down() -> SightlineError:
    """Returns the error for a call with a key that cannot be claimed."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        "IDEMPOTENCY_STORE_UNAVAILABLE",
        f"the store of {METADATA_KEY} values does not work at present",
    )


def _is_uuid4(text: str) -> bool:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    # Only the usual form: uuid.UUID also takes braces, "urn:uuid:" and no hyphens.
    return parsed.version == _UUID_VERSION and str(parsed) == text.lower()


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()
