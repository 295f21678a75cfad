"""Errors of uploads and references, each with a reason and a field."""

import grpc

from servicekit.errors import FieldViolation, QuotaViolation, SightlineError

_MIN_RETRY_SECONDS = 1.0


class UploadStoreError(Exception):
    """The upload store failed: a folder, file or database. The message is one sentence."""


class ReferenceLostError(SightlineError):
    """A valid reference of the caller to an image that is no longer stored.

    Attributes:
        sha256: SHA-256 of the image, 32 bytes, by which an earlier response can still be found.
    """

    def __init__(self, reason: str, rule: str, sha256: bytes) -> None:
        super().__init__(*_not_found(reason, rule), violations=_violations(rule))
        self.sha256 = sha256


def reference_unknown() -> SightlineError:
    """Return the error for a reference that this caller did not get."""
    rule = "must be one that UploadImage returned to this caller: upload the image again"
    return SightlineError(*_not_found("REFERENCE_UNKNOWN", rule), violations=_violations(rule))


def reference_expired(sha256: bytes, ago: float) -> ReferenceLostError:
    """Return the error for a reference that expired `ago` seconds ago."""
    rule = f"expired {ago:.0f} s ago: upload the image again"
    return ReferenceLostError("REFERENCE_EXPIRED", rule, sha256)


def reference_gone(sha256: bytes) -> ReferenceLostError:
    """Return the error for a valid reference to an image that the store has lost."""
    rule = "is valid, but its image is no longer stored: upload it again"
    return ReferenceLostError("REFERENCE_GONE", rule, sha256)


def quota_exceeded(caller: str, bound: str, retry_after: float) -> SightlineError:
    """Return the error for a caller whose quota is used up.

    Args:
        caller: name of the caller.
        bound: its quota, e.g. `1000 images`.
        retry_after: seconds until enough of it has expired.
    """
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_QUOTA_EXCEEDED",
        f"caller {caller} may store {bound}: wait until an upload expires",
        quotas=[QuotaViolation(f"caller:{caller}", f"{bound} uploaded")],
        retry_after=max(retry_after, _MIN_RETRY_SECONDS),
    )


def store_full(limit: str, retry_after: float) -> SightlineError:
    """Return the error for a full store; `limit` says which limit was reached."""
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_STORE_FULL",
        f"the upload store is full ({limit}): send the image in Infer itself, or retry later",
        quotas=[QuotaViolation("server", limit)],
        retry_after=max(retry_after, _MIN_RETRY_SECONDS),
    )


def store_down() -> SightlineError:
    """Return the error for a failed store."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        "UPLOAD_STORE_UNAVAILABLE",
        "the upload store does not work at present: send the image in Infer itself",
    )


def _not_found(reason: str, rule: str) -> tuple[grpc.StatusCode, str, str]:
    return grpc.StatusCode.NOT_FOUND, reason, f"reference {rule}"


def _violations(rule: str) -> list[FieldViolation]:
    # Without a path: `validate` adds that of the image in the request.
    return [FieldViolation("reference", rule)]
