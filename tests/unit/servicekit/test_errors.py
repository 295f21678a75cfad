import math

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.errors import (
    Category,
    FieldViolation,
    QuotaViolation,
    SightlineError,
    from_rpc_error,
    from_status,
    invalid,
    to_status,
)

ERROR_CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
TABLE = {  # the error table of the contract
    grpc.StatusCode.UNAVAILABLE: ("network", True),
    grpc.StatusCode.UNAUTHENTICATED: ("auth", False),
    grpc.StatusCode.PERMISSION_DENIED: ("auth", False),
    grpc.StatusCode.DEADLINE_EXCEEDED: ("timeout", False),
    grpc.StatusCode.INTERNAL: ("server", True),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("server", True),
    grpc.StatusCode.ABORTED: ("server", True),
    grpc.StatusCode.INVALID_ARGUMENT: ("validation", False),
    grpc.StatusCode.NOT_FOUND: ("validation", False),
    grpc.StatusCode.FAILED_PRECONDITION: ("validation", False),
}
words = st.text(min_size=1, max_size=40)
small_errors = st.builds(
    SightlineError,
    st.sampled_from(ERROR_CODES),
    st.from_regex(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", fullmatch=True),
    words,
    violations=st.lists(st.builds(FieldViolation, words, words), max_size=5),
    quotas=st.lists(st.builds(QuotaViolation, words, words), max_size=5),
    retry_after=st.none() | st.integers(0, 10**12).map(lambda ns: ns / 1e9),
    metadata=st.dictionaries(words.filter(lambda w: w not in {"category", "retryable"}), words),
)


def facts(error: SightlineError) -> dict[str, object]:
    return vars(error)


@pytest.mark.parametrize(
    ("code", "row"), TABLE.items(), ids=lambda value: getattr(value, "name", "")
)
def test_category_and_retryable_follow_from_the_code(
    code: grpc.StatusCode, row: tuple[str, bool]
) -> None:
    error = SightlineError(code, "REASON", "message")
    assert (error.category, error.retryable) == row
    info = error_details_pb2.ErrorInfo()
    assert to_status(error).details[0].Unpack(info)
    assert info.domain == "sightline.dev"
    assert dict(info.metadata) == {"category": row[0], "retryable": str(row[1]).lower()}


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_code_has_a_category(code: grpc.StatusCode) -> None:
    assert SightlineError(code, "REASON", "message").category in Category


def test_ok_is_no_error() -> None:
    with pytest.raises(ValueError, match="must not be OK"):
        SightlineError(grpc.StatusCode.OK, "REASON", "message")


@settings(deadline=None)
@given(small_errors)
def test_an_error_survives_the_wire(error: SightlineError) -> None:
    wire = to_status(error).SerializeToString()
    assert facts(from_status(status_pb2.Status.FromString(wire))) == facts(error)


@settings(deadline=None)
@given(
    st.builds(invalid, st.text(), st.text())
    | st.builds(
        SightlineError,
        st.sampled_from(ERROR_CODES),
        st.just("REASON"),
        st.text(
            st.characters(),
            max_size=3000,  # with lone surrogates
        ),
        retry_after=st.floats(),
    )
)
def test_every_error_can_be_sent(error: SightlineError) -> None:
    received = from_status(to_status(error))
    assert (received.code, received.reason) == (error.code, error.reason)


@settings(deadline=None)
@given(
    st.integers(),
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "google.rpc.ErrorInfo",
                    "google.rpc.BadRequest",
                    "google.rpc.QuotaFailure",
                    "google.rpc.RetryInfo",
                    "unheard.Of",
                ]
            ),
            st.binary(max_size=50),
        )
    ),
)
def test_a_strangers_status_is_always_an_error(
    number: int, details: list[tuple[str, bytes]]
) -> None:
    number = max(min(number, 2**31 - 1), -(2**31))
    packed = [any_pb2.Any(type_url=f"type.googleapis.com/{n}", value=v) for n, v in details]
    error = from_status(status_pb2.Status(code=number, details=packed))
    assert error.code in ERROR_CODES
    assert error.message
    assert error.reason


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [(-1, 0, 0.0), (2**62, 0, 315_576_000_000.0), (1, 500_000_000, 1.5)],
)
def test_a_strangers_delay_can_be_waited(seconds: int, nanos: int, expected: float) -> None:
    detail = any_pb2.Any()
    delay = duration_pb2.Duration(seconds=seconds, nanos=nanos)
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    assert from_status(status_pb2.Status(code=14, details=[detail])).retry_after == expected


@pytest.mark.parametrize(
    ("given_s", "kept_s"), [(-0.5, 0.0), (math.nan, 0.0), (math.inf, 315_576_000_000.0), (2.5, 2.5)]
)
def test_a_delay_is_kept_within_what_can_be_sent(given_s: float, kept_s: float) -> None:
    error = SightlineError(grpc.StatusCode.ABORTED, "REASON", "message", retry_after=given_s)
    assert error.retry_after == kept_s
    assert from_status(to_status(error)).retry_after == kept_s


def test_invalid_names_field_and_bound() -> None:
    error = invalid("images[2].sha256", "must be 32 bytes (got 31)")
    assert error.message == "images[2].sha256 must be 32 bytes (got 31)"
    assert error.violations == (FieldViolation("images[2].sha256", "must be 32 bytes (got 31)"),)
    assert str(error).endswith("[INVALID_ARGUMENT, INVALID_FIELD]")


def test_violations_without_room_are_counted() -> None:
    violations = [FieldViolation(f"field[{i}]", "must be " + "x" * 100) for i in range(1000)]
    error = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "R", "m", violations=violations)
    status = to_status(error)
    assert status.ByteSize() < 4500
    received = from_status(status)
    assert received.violations == tuple(violations[: len(received.violations)])
    assert len(received.violations) > 20
    assert int(received.metadata["details_left_out"]) == 1000 - len(received.violations)


def test_a_long_message_is_cut_at_a_character() -> None:
    received = from_status(to_status(SightlineError(grpc.StatusCode.INTERNAL, "R", "ä" * 5000)))
    assert received.message == "ä" * 254 + "..."


def test_an_rpc_error_of_no_call_is_unknown() -> None:
    error = from_rpc_error(grpc.RpcError("who knows"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNKNOWN, "UNKNOWN")
    assert error.message == "who knows"
