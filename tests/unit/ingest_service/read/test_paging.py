import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_service.read.paging import decode_token, encode_token
from ingest_service.store.protocol import Filter, Position
from servicekit.errors import SightlineError

EVERYTHING = Filter()
POSITION = Position(1_795_000_000_000_000, "gate-1", "spool", 7)
INT64 = st.integers(-(2**63), 2**63 - 1)
TIMES_US = st.integers(-(2**62), 253_402_300_800_000_000)


def token_of(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


@given(st.builds(Position, TIMES_US, st.text(max_size=256), st.text(max_size=36), INT64))
def test_a_token_leads_back_to_its_position(position: Position) -> None:
    assert decode_token(encode_token(position, EVERYTHING), EVERYTHING) == position


GOOD = json.loads(base64.urlsafe_b64decode(encode_token(POSITION, EVERYTHING) + "=="))


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!!",
        "é",
        "=" * 8,
        "A" * 5000,
        encode_token(POSITION, EVERYTHING)[:-5],
        token_of(),
        token_of("[" * 3000),
        token_of(*GOOD, 1),
        token_of(2, *GOOD[1:]),
        token_of(*GOOD[:2], 2**63 - 1, *GOOD[3:]),  # beyond what DuckDB takes as a time
        token_of(*GOOD[:2], -(2**63) + 1, *GOOD[3:]),
        token_of(*GOOD[:5], -(2**63) - 1),
        token_of(*GOOD[:2], 1.5, *GOOD[3:]),
        token_of(*GOOD[:3], None, *GOOD[4:]),
        token_of(*GOOD[:3], "\ud800", *GOOD[4:]),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_what_is_no_token_is_refused_by_field(token: str) -> None:
    with pytest.raises(SightlineError) as caught:
        decode_token(token, EVERYTHING)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert caught.value.violations[0].field == "page_token"


def test_a_token_is_good_for_its_filter_only() -> None:
    token = encode_token(POSITION, Filter(device_ids=("a",)))
    with pytest.raises(SightlineError, match="filter"):
        decode_token(token, EVERYTHING)


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(SightlineError) as caught:
        decode_token(text, EVERYTHING)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
