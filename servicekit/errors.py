"""`SightlineError`, its canonical codes, and its conversion to and from a gRPC status.

Every error that Sightline raises on purpose is a `SightlineError`. A server sends it as a
`google.rpc.Status` with `ErrorInfo` (domain `sightline.dev`) and, where they apply,
`BadRequest`, `RetryInfo` and `QuotaFailure`; a client turns a failed call back into one. The
details are those of Google's API design guide (AIP-193).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "sightline.dev"
_MAX_MESSAGE_BYTES = 512
_MAX_STATUS_BYTES = 4096
"""gRPC drops a call's status if its trailers pass 8 KiB: the message (three times its size when it
is percent-encoded) and the details (base64: four thirds) have to stay below that together."""
_FRAME_BYTES = 6
"""Maximum overhead of a message as an element of a repeated field, bytes."""
_OUT_OF_MEMORY_SECONDS = 1.0
_PUSHBACK = "grpc-retry-pushback-ms"
_MAX_PUSHBACK_MS = 2**31 - 1
"""gRPC's own clients read an int32."""
M = TypeVar("M", bound=Message)


class Category(StrEnum):
    """The kind of an error, for code that decides how to handle it."""

    NETWORK = "network"
    AUTH = "auth"
    TIMEOUT = "timeout"
    SERVER = "server"
    VALIDATION = "validation"


_CATEGORIES: Mapping[grpc.StatusCode, Category] = {
    grpc.StatusCode.UNAVAILABLE: Category.NETWORK,
    grpc.StatusCode.UNAUTHENTICATED: Category.AUTH,
    grpc.StatusCode.PERMISSION_DENIED: Category.AUTH,
    grpc.StatusCode.DEADLINE_EXCEEDED: Category.TIMEOUT,
    # The caller gave up, which it handles like a timeout.
    grpc.StatusCode.CANCELLED: Category.TIMEOUT,
    grpc.StatusCode.INTERNAL: Category.SERVER,
    grpc.StatusCode.UNKNOWN: Category.SERVER,
    grpc.StatusCode.DATA_LOSS: Category.SERVER,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Category.SERVER,
    grpc.StatusCode.ABORTED: Category.SERVER,
    grpc.StatusCode.INVALID_ARGUMENT: Category.VALIDATION,
    grpc.StatusCode.NOT_FOUND: Category.VALIDATION,
    grpc.StatusCode.ALREADY_EXISTS: Category.VALIDATION,
    grpc.StatusCode.FAILED_PRECONDITION: Category.VALIDATION,
    grpc.StatusCode.OUT_OF_RANGE: Category.VALIDATION,
    grpc.StatusCode.UNIMPLEMENTED: Category.VALIDATION,
}
_MAX_RETRY_AFTER = 315_576_000_000.0
"""Ten thousand years: the maximum of google.protobuf.Duration, s."""
_RETRYABLE = frozenset({Category.NETWORK, Category.SERVER})
_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule."""

    field: str
    """Path of the field, such as `images[2].sha256`."""
    description: str
    """The rule, with its bound."""


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One quota that is used up."""

    subject: str
    """Owner of the quota, such as `caller:gate-1`."""
    description: str
    """The quota, with its bound."""


class SightlineError(Exception):
    """An error with a canonical code, a reason and what the caller can do about it.

    Attributes:
        code: canonical status code; never OK.
        reason: UPPER_SNAKE_CASE, stable, for programs.
        message: one sentence for people; names the field and the bound where there is one.
        violations: the fields that break a rule (INVALID_ARGUMENT).
        quotas: the quotas that are used up (RESOURCE_EXHAUSTED).
        retry_after: seconds to wait before a retry, >= 0 (a negative one becomes 0); None: the
            server does not say.
        metadata: further facts for programs, such as `expected_sequence`.
        do_not_retry: True if the server forbids a retry
            (`grpc-retry-pushback-ms` that is no number >= 0, gRPC's proposal A6).

    Example:
        >>> from sightline import InferenceClient, SightlineError
        >>> with InferenceClient("127.0.0.1:1", timeout=5.0) as client:
        ...     try:
        ...         answer = client.infer(["photo.jpg"])
        ...     except SightlineError as error:  # no service listens on this port
        ...         print(error.code.name, error.category, error.retryable)
        UNAVAILABLE network True
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        quotas: Sequence[QuotaViolation] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
        do_not_retry: bool = False,
    ) -> None:
        if code is grpc.StatusCode.OK:
            raise ValueError("code must not be OK, which is not an error")
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.quotas = tuple(quotas)
        self.retry_after = None if retry_after is None else _waitable(retry_after)
        self.metadata = dict(metadata or {})
        self.do_not_retry = do_not_retry

    def __str__(self) -> str:
        return f"{self.message} [{self.code.name}, {self.reason}]"

    def __reduce__(self) -> tuple[object, ...]:
        """Return what copy and pickle need: by default an exception is rebuilt from its message."""
        return _restored, (type(self), self.args, self.__dict__.copy())

    @property
    def category(self) -> Category:
        """The kind of error, from the code alone."""
        return _CATEGORIES[self.code]

    @property
    def retryable(self) -> bool:
        """True if the same call, unchanged, may succeed later."""
        return self.category in _RETRYABLE


def _restored(
    kind: "type[SightlineError]", arguments: tuple[object, ...], state: Mapping[str, object]
) -> "SightlineError":
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


def invalid(field: str, description: str, *, reason: str = "INVALID_FIELD") -> SightlineError:
    """Return the error for one field of a request that breaks a rule.

    Args:
        field: path of the field, such as `images[2].sha256`.
        description: the rule with its bound, to be read after the field's name: "must be ...".
        reason: UPPER_SNAKE_CASE.
    """
    return SightlineError(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{field} {description}",
        violations=[FieldViolation(field, description)],
    )


def out_of_memory() -> SightlineError:
    """Return the error for a call for which the server has no memory now."""
    return SightlineError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OUT_OF_MEMORY",
        "the server has no memory for this request now",
        retry_after=_OUT_OF_MEMORY_SECONDS,
    )


def without_frames(error: SightlineError) -> SightlineError:
    """Return the error itself without its traceback, its cause and its context.

    For an error that is kept: its frames refer to the call and the call refers to the error. Such a
    cycle keeps a request and its images in memory until a full garbage collection.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def to_status(error: SightlineError) -> status_pb2.Status:
    """Return the error as the `google.rpc.Status` that goes over the wire.

    It fits into gRPC's trailers: a long message is cut, and fields and quotas that do not fit
    are left out and counted in ErrorInfo's metadata under `details_left_out`.
    """
    message = _clip(error.message)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={
            **{key: _clip(value) for key, value in error.metadata.items()},
            "category": str(error.category),
            "retryable": str(error.retryable).lower(),
        },
    )
    free_bytes = _MAX_STATUS_BYTES - len(message.encode()) - info.ByteSize()
    fields, free_bytes = _fitting(map(_field_violation, error.violations), free_bytes)
    quotas, free_bytes = _fitting(map(_quota_violation, error.quotas), free_bytes)
    left_out = len(error.violations) + len(error.quotas) - len(fields) - len(quotas)
    if left_out:
        info.metadata["details_left_out"] = str(left_out)
    details = [_pack(info)]
    if fields:
        details.append(_pack(error_details_pb2.BadRequest(field_violations=fields)))
    if quotas:
        details.append(_pack(error_details_pb2.QuotaFailure(violations=quotas)))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=error.code.value[0], message=message, details=details)


def from_status(status: status_pb2.Status) -> SightlineError:
    """Return the error that a `google.rpc.Status` describes.

    Details that are unknown or damaged are left out.
    """
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    if status.code == code_pb2.OK:
        code = grpc.StatusCode.UNKNOWN
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad_request, quota, retry):
            try:
                detail.Unpack(message)
            except DecodeError:
                message.Clear()
    delay = retry.retry_delay
    facts = {k: v for k, v in info.metadata.items() if k not in {"category", "retryable"}}
    return SightlineError(
        code,
        info.reason or code.name,
        status.message or code.name,
        violations=[FieldViolation(v.field, v.description) for v in bad_request.field_violations],
        quotas=[QuotaViolation(v.subject, v.description) for v in quota.violations],
        retry_after=delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        metadata=facts,
    )


def from_rpc_error(error: grpc.RpcError) -> SightlineError:
    """Return the error of a failed call, for each of gRPC's error classes.

    A server that is not Sightline's, or a proxy, sends no details: the reason is then the code's
    name.
    """
    code = error.code() if callable(getattr(error, "code", None)) else None
    if not isinstance(code, grpc.StatusCode) or code is grpc.StatusCode.OK:
        return SightlineError(grpc.StatusCode.UNKNOWN, "UNKNOWN", str(error) or "unknown error")
    message = str(error.details() or code.name) if callable(getattr(error, "details", None)) else ""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):  # details that contradict the code, or are not details
        status = None
    plain = SightlineError(code, code.name, message or code.name)
    return _pushed_back(from_status(status) if status is not None else plain, error)


def _pushed_back(result: SightlineError, error: grpc.RpcError) -> SightlineError:
    """Apply the server's retry push-back: a time in milliseconds, or no retry (gRPC's A6)."""
    trailing: Iterable[tuple[str, str | bytes]]
    trailing = getattr(error, "trailing_metadata", lambda: ())() or ()
    pushback = dict(trailing).get(_PUSHBACK)
    if pushback is None:
        return result
    try:
        milliseconds = int(pushback)
    except ValueError:
        milliseconds = -1  # as A6 says
    if not 0 <= milliseconds <= _MAX_PUSHBACK_MS:
        result.do_not_retry = True
    elif result.retry_after is None:
        result.retry_after = milliseconds / 1e3
    return result


def _clip(text: str) -> str:
    """Return the text as UTF-8 can hold it, cut to the bytes that fit into a status."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[: _MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."


def _field_violation(violation: FieldViolation) -> error_details_pb2.BadRequest.FieldViolation:
    return error_details_pb2.BadRequest.FieldViolation(
        field=_clip(violation.field), description=_clip(violation.description)
    )


def _quota_violation(violation: QuotaViolation) -> error_details_pb2.QuotaFailure.Violation:
    return error_details_pb2.QuotaFailure.Violation(
        subject=_clip(violation.subject), description=_clip(violation.description)
    )


def _fitting(messages: Iterable[M], free_bytes: int) -> tuple[list[M], int]:
    """Return the first messages that fit into `free_bytes`, and the bytes that are left."""
    fitting: list[M] = []
    for message in messages:
        free_bytes -= message.ByteSize() + _FRAME_BYTES
        if free_bytes < 0:
            break
        fitting.append(message)
    return fitting, free_bytes


def _waitable(seconds: float) -> float:
    """Return a delay that a Duration can hold: 0 to ten thousand years, and 0 for NaN."""
    return min(max(0.0, seconds), _MAX_RETRY_AFTER)


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
