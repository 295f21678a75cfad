"""Idempotency keys: parsing, request fingerprints and errors."""

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
"""Error reason for a call while another call with its key is in progress."""
_UUID_VERSION = 4


def read_key(values: Sequence[str], *, caller: str, method: str) -> bytes | None:
    """Return the key under which a call is claimed: a hash of caller, method and key.

    Args:
        values: every value of metadata `idempotency-key`.
        caller: identity of the caller; equal keys of different callers are different keys.
        method: name of the RPC.

    Returns:
        32 bytes; None if the call has no key.

    Raises:
        SightlineError: INVALID_ARGUMENT, `IDEMPOTENCY_KEY_INVALID`: not one UUIDv4.
    """
    if not values:
        return None
    if len(values) > 1:
        rule = f"must be given once, got {len(values)} values"
        raise invalid(METADATA_KEY, rule, reason="IDEMPOTENCY_KEY_INVALID")
    if not _is_uuid4(values[0]):
        rule = "must be a UUIDv4 such as 123e4567-e89b-42d3-a456-426614174000"
        raise invalid(METADATA_KEY, rule, reason="IDEMPOTENCY_KEY_INVALID")
    return _hash(caller, method, values[0].lower())


def fingerprint(request: CheckedRequest) -> bytes:
    """Return the fingerprint of a request: SHA-256 of model, version, parameters and images.

    Model and version are those of the request, so that a retry of a request for the default model
    has the same fingerprint when the default changes. Parameters that were added later count only
    if they are set: the fingerprints of claims that an older version stored must stay valid.
    """
    parameters = request.parameters
    masks = [parameters.mask_format, parameters.polygon_tolerance]
    return _hash(
        request.model_name,
        request.model_version,
        [
            *(parameters.confidence, parameters.iou, parameters.max_detections, parameters.top_k),
            *(masks if masks != [None, None] else ()),
        ],
        [[image.image_id, image.sha256.hex()] for image in request.images],
    )


def key_reused() -> SightlineError:
    """Return the error for a key that is bound to another request."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "IDEMPOTENCY_KEY_REUSED",
        f"{METADATA_KEY} was already used with another model, other parameters or other images: use"
        " a new key",
    )


def twin_in_flight(retry_after: float) -> SightlineError:
    """Return the error for a call while another call with its key is in progress.

    Args:
        retry_after: seconds until a retry.
    """
    return SightlineError(
        grpc.StatusCode.ABORTED,
        TWIN_IN_FLIGHT,
        f"a call with this {METADATA_KEY} is in progress: retry to get its response",
        retry_after=retry_after,
    )


def store_down() -> SightlineError:
    """Return the error for a call with a key that cannot be claimed."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        "IDEMPOTENCY_STORE_UNAVAILABLE",
        f"the store of {METADATA_KEY} values does not work at present: retry later",
    )


def _is_uuid4(text: str) -> bool:
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    # Only the canonical form: uuid.UUID also accepts braces, "urn:uuid:" and missing hyphens.
    return parsed.version == _UUID_VERSION and str(parsed) == text.lower()


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()
