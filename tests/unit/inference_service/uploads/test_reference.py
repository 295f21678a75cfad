"""References: what they say, and to whom."""

import base64
import re

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.uploads.reference import Claim, ReferenceSigner
from servicekit.errors import SightlineError

SIGNER = ReferenceSigner(b"k" * 32)
CLAIM = Claim(b"\xff" * 32, 137_000, 1_700_000_000.125)
REFERENCE = SIGNER.sign(CLAIM, "api_key:gate-1")


def refusal(reference: str, owner: str = "api_key:gate-1", now: float = 0.0) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        SIGNER.read(reference, owner, now)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    return caught.value


def test_a_reference_is_short_url_safe_text() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{108}", REFERENCE)
    assert b"gate" not in base64.urlsafe_b64decode(REFERENCE)


def test_its_owner_gets_what_was_signed_until_it_expires() -> None:
    assert SIGNER.read(REFERENCE, "api_key:gate-1", 1_700_000_000.124) == CLAIM
    for now in (1_700_000_000.125, 1_700_000_060.125):
        error = refusal(REFERENCE, now=now)
        assert error.reason == "REFERENCE_EXPIRED"
        assert [violation.field for violation in error.violations] == ["reference"]
    assert "expired 60 s ago" in refusal(REFERENCE, now=1_700_000_060.125).message


def test_to_others_it_is_as_good_as_forged_even_after_its_time() -> None:
    refusals = [
        refusal(REFERENCE, owner="jwt:gate-1"),
        refusal(REFERENCE, owner="api_key:gate-2", now=2e9),
        refusal("", now=2e9),
        refusal(REFERENCE[:-4]),
        refusal(REFERENCE + "AAAA"),
        refusal("Ä" * 108),
        refusal("A" * 108),
        refusal("A" * 100_000),
        refusal(REFERENCE + "="),
        refusal(REFERENCE[:-1] + "="),
        refusal(REFERENCE[:-1] + "\n"),
        refusal(REFERENCE.replace("_", "/")),
    ]
    assert {error.reason for error in refusals} == {"REFERENCE_UNKNOWN"}
    assert len({error.message for error in refusals}) == 1


@given(st.integers(0, 80), st.integers(1, 255))
def test_no_byte_can_be_changed(at: int, change: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(REFERENCE))
    raw[at] ^= change
    assert refusal(base64.urlsafe_b64encode(raw).decode()).reason == "REFERENCE_UNKNOWN"


@given(st.text(max_size=200))
def test_whatever_is_brought_is_refused(reference: str) -> None:
    assert refusal(reference).reason == "REFERENCE_UNKNOWN"


@given(st.binary(min_size=32, max_size=32), st.integers(1, 1 << 40), st.integers(1, 1 << 42))
def test_what_is_signed_can_be_read(sha256: bytes, size: int, expires_ms: int) -> None:
    claim = Claim(sha256, size, expires_ms / 1000)
    assert SIGNER.read(SIGNER.sign(claim, "o"), "o", 0.0) == claim


def test_another_key_signs_otherwise() -> None:
    with pytest.raises(SightlineError, match="REFERENCE_UNKNOWN"):
        ReferenceSigner(b"x" * 32).read(REFERENCE, "api_key:gate-1", 0.0)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes, got 31"):
        ReferenceSigner(b"k" * 31)
