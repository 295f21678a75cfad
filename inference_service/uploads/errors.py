"""What can be wrong with an upload or with a reference: each its own reason and field."""

import grpc

from servicekit.errors import FieldViolation, QuotaViolation, SightlineError

_LEAST_RETRY_SECONDS = 1.0


class StoreError(Exception):
    """The store of uploads cannot be used: a folder, file or database that fails. One sentence."""


def reference_unknown() -> SightlineError:
    """Returns the error for a reference that is none of this caller's."""
    return _not_found(
        "REFERENCE_UNKNOWN", "must be what UploadImage gave this caller: upload the picture again"
    )


def reference_expired(ago: float) -> SightlineError:
    """Returns the error for a reference that was good until so many seconds ago."""
    return _not_found("REFERENCE_EXPIRED", f"expired {ago:.0f} s ago: upload the picture again")


def reference_gone() -> SightlineError:
    """Returns the error for a good reference whose picture the store has lost."""
    rule = "is good, but its picture is not stored any more: upload it again"
    return _not_found("REFERENCE_GONE", rule)


def quota_exceeded(caller: str, bound: str, retry_after: float) -> SightlineError:
    """Returns the error for a caller that has as much stored as it may.

    Args:
        caller: name of the caller.
        bound: its quota, such as `1000 pictures`.
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
    """Returns the error for a store that has no room for anybody's picture."""
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_STORE_FULL",
        f"the store of uploads is full ({why}): send the picture in Infer itself, or later",
        quotas=[QuotaViolation("server", why)],
        retry_after=max(retry_after, _LEAST_RETRY_SECONDS),
    )


def store_down() -> SightlineError:
    """Returns the error for a store that does not work at present."""
    return SightlineError(
        grpc.StatusCode.UNAVAILABLE,
        "UPLOAD_STORE_UNAVAILABLE",
        "the store of uploads does not work at present: send the picture in Infer itself",
    )


def _not_found(reason: str, rule: str) -> SightlineError:
    # The rule is for whoever puts the picture's place in the request before it.
    return SightlineError(
        grpc.StatusCode.NOT_FOUND,
        reason,
        f"reference {rule}",
        violations=[FieldViolation("reference", rule)],
    )
