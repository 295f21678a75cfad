"""What an idempotency key is, what it is bound to, and the errors about it."""

import hashlib
import json
import uuid
from collections.abc import Sequence

import grpc

from inference_service.domain import CheckedRequest
from servicekit.errors import SightlineError, invalid

METADATA_KEY = "idempotency-key"
REPLAYED_KEY = "idempotent-replayed"
TWIN_IN_FLIGHT = "IDEMPOTENCY_TWIN_IN_FLIGHT"
"""Reason of the error for a call whose twin is still at work."""
_UUID_VERSION = 4


def read_key(given: Sequence[str], *, caller: str, method: str) -> bytes | None:
    """Return the key under which a call is claimed: a hash of caller, method and key.

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


def fingerprint(checked_request: CheckedRequest) -> bytes:
    """Return what a key is bound to: SHA-256 of model, version, parameters and images.

    Model and version count as they were asked for, so that a retry of a request for the default
    model stays the same when the default changes.
    """
    asked = checked_request.parameters
    return _hash(
        checked_request.model_name,
        checked_request.model_version,
        [asked.confidence, asked.iou, asked.max_detections, asked.top_k],
        [[image.image_id, image.sha256.hex()] for image in checked_request.images],
    )


def key_reused() -> SightlineError:
    """Return the error for a key that is bound to another request."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "IDEMPOTENCY_KEY_REUSED",
        f"{METADATA_KEY} was used with another model, parameters or images: use a new key",
    )


def twin_in_flight(retry_after: float) -> SightlineError:
    """Return the error for a call whose twin is still at work; seconds until a retry."""
    return SightlineError(
        grpc.StatusCode.ABORTED,
        TWIN_IN_FLIGHT,
        f"a call with this {METADATA_KEY} is being answered: retry to get its answer",
        retry_after=retry_after,
    )


def store_down() -> SightlineError:
    """Return the error for a call with a key that cannot be claimed."""
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
