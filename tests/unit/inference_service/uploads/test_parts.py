"""The bounds of an upload's messages, from both sides; what is beyond is tested over the wire."""

import hashlib

import pytest

from inference_service.uploads.parts import (
    MAX_CHUNK_BYTES,
    Header,
    check_end,
    check_first,
    check_next,
)
from servicekit.errors import SightlineError

HEADER = Header(bytes(32), 2 * MAX_CHUNK_BYTES)


def test_a_header_at_its_bounds() -> None:
    for size in (1, 1000):
        assert check_first(Header(bytes(32), size), 1000).size == size
    with pytest.raises(SightlineError, match=r"header\.size_bytes must be at most 1000, got 1001"):
        check_first(Header(bytes(32), 1001), 1000)


@pytest.mark.parametrize("size", [31, 33])
def test_a_hash_that_is_none(size: int) -> None:
    with pytest.raises(SightlineError, match=f"must be 32 bytes, got {size} bytes"):
        check_first(Header(bytes(size), 1), 1000)


def test_a_chunk_at_its_bounds() -> None:
    for size in (1, MAX_CHUNK_BYTES):
        assert len(check_next(bytes(size), HEADER, MAX_CHUNK_BYTES)) == size
    with pytest.raises(SightlineError, match="UPLOAD_TOO_LONG"):
        check_next(bytes(MAX_CHUNK_BYTES), HEADER, MAX_CHUNK_BYTES + 1)


def test_an_end() -> None:
    data = b"four"
    header = Header(hashlib.sha256(data).digest(), 4)
    check_end(header, 4, header.sha256)
    with pytest.raises(SightlineError, match="bytes sent, 3, got 4"):
        check_end(header, 3, bytes(32))
    with pytest.raises(SightlineError, match=f"which is {'00' * 32}"):
        check_end(header, 4, bytes(32))
