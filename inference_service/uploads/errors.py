"""What can be wrong with an upload or with a reference: each its own reason and field."""

import grpc

from servicekit.errors import FieldViolation, QuotaViolation, SightlineError

_LEAST_RETRY_SECONDS = 1.0


class UploadStoreError(Exception):
    """The store of uploads cannot be used: a folder, file or database that fails. One sentence."""


class ReferenceLostError(SightlineError):
    """A good reference of the caller's whose image is not there any more.

    Attributes:
        sha256: of the image, 32 bytes: an answer that was given for it can still be found.
    """

    def __init__(self, reason: str, rule: str, sha256: bytes) -> None:
        super().__init__(*_not_found(reason, rule), violations=_violations(rule))
        self.sha256 = sha256


def reference_unknown() -> SightlineError:
    """Return the error for a reference that is none of this caller's."""
    rule = "must be what UploadImage gave this caller: upload the image again"
    return SightlineError(*_not_found("REFERENCE_UNKNOWN", rule), violations=_violations(rule))


def reference_expired(sha256: bytes, ago: float) -> ReferenceLostError:
    """Return the error for a reference that was good until so many seconds ago."""
    rule = f"expired {ago:.0f} s ago: upload the image again"
    return ReferenceLostError("REFERENCE_EXPIRED", rule, sha256)


def reference_gone(sha256: bytes) -> ReferenceLostError:
    """Return the error for a good reference whose image the store has lost."""
    rule = "is good, but its image is not stored any more: upload it again"
    return ReferenceLostError("REFERENCE_GONE", rule, sha256)


def quota_exceeded(caller: str, bound: str, retry_after: float) -> SightlineError:
    """Return the error for a caller that has as much stored as it may.

    Args:
        caller: name of the caller.
        bound: its quota, such as `1000 images`.
        retry_after: seconds until enough of it has expired.
    """
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_QUOTA_EXCEEDED",
        f"caller {caller} may have {bound} uploaded that have not expired",
        quotas=[QuotaViolation(f"caller:{caller}", f"{bound} uploaded")],
        retry_after=max(retry_after, _LEAST_RETRY_SECONDS),
    )


def store_full(why: str, retry_after: float) -> SightlineError:
    """Return the error for a store that has no room for anybody's image."""
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_STORE_FULL",
        f"the store of uploads is full ({why}): send the image in Infer itself, or later",
        quotas=[QuotaViolation("server", why)],
        retry_after=max(retry_after, _LEAST_RETRY_SECONDS),
    )


def store_down() -> SightlineError:
    """Return the error for a store that does not work at present."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        "UPLOAD_STORE_UNAVAILABLE",
        "the store of uploads does not work at present: send the image in Infer itself",
    )


def _not_found(reason: str, rule: str) -> tuple[grpc.StatusCode, str, str]:
    return grpc.StatusCode.NOT_FOUND, reason, f"reference {rule}"


def _violations(rule: str) -> list[FieldViolation]:
    # The rule is for whoever puts the image's place in the request before it.
    return [FieldViolation("reference", rule)]
