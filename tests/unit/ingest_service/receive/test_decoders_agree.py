"""Both decoders refuse the same bytes, and return the same columns for all others.

The only exceptions are kinds of bytes that docs/reference/errors.md lists.
"""

import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from ingest_service.receive.decode import Decoder
from tests.unit.ingest_service import oracle, wire
from tests.unit.ingest_service.mutate import damaged, rich_message, spoiled
from tests.unit.ingest_service.samples import DECODERS, header, predictions, request

PTARS, PROTOBUF = DECODERS["ptars"], DECODERS["protobuf"]
REQUEST = PredictionLogRequest.DESCRIPTOR
FIELDS = wire.read(rich_message(), REQUEST)
many = settings(max_examples=500, deadline=None)


def decoded(decoder: Decoder, payload: bytes) -> oracle.Columns | None:
    """Return the columns of a message; None: it is refused as malformed."""
    result = decoder.decode([payload])
    if result.refused:
        assert result.refused[0].reason == "MALFORMED_MESSAGE"
        return None
    batch = result.batch
    columns = oracle.by_arrow(batch.column("predictions").values, batch.column("gaps").values)
    return columns | {"header": batch.column("header").is_valid().to_pylist()}


def assert_agreement(payload: bytes) -> None:
    by_ptars, by_protobuf = decoded(PTARS, payload), decoded(PROTOBUF, payload)
    if by_ptars == by_protobuf:
        return
    odd = wire.oddities(payload, REQUEST)
    if by_ptars is None:
        assert odd & oracle.PROTOBUF_READS, payload.hex()
    elif by_protobuf is None:
        assert odd & oracle.PTARS_READS, payload.hex()
    else:
        differing = {name for name in by_ptars if by_ptars[name] != by_protobuf[name]}
        if "foreign field in a label" in odd:
            differing -= {"labels"}
        if "message twice" in odd:
            differing -= oracle.MERGED
        assert not differing, payload.hex()


@many
@given(st.randoms(use_true_random=False))
def test_fields_that_are_wrong(chance: random.Random) -> None:
    assert_agreement(spoiled(FIELDS, chance))


@many
@given(st.randoms(use_true_random=False))
def test_bytes_that_are_damaged(chance: random.Random) -> None:
    assert_agreement(damaged(rich_message(), chance))


@many
@given(st.binary(max_size=64))
@example(b"")
@example(b"\x12\x00")
@example(b"\x0a\x00")
@example(bytes.fromhex("53a4570800"))  # a group that ends under another number
def test_arbitrary_bytes(payload: bytes) -> None:
    assert_agreement(payload)


def polygon_points(*written: bytes) -> bytes:
    """Return a message with a polygon whose points are written in this way."""
    nested = b"".join(written)
    for tag in (b"\x22", b"\x42", b"\x5a", b"\x12"):  # polygons, mask, detections, predictions
        nested = tag + wire.varint(len(nested)) + nested
    return nested


ONE, TWO = struct.pack("<f", 1.0), struct.pack("<f", 2.0)


@pytest.mark.parametrize(
    ("written", "points"),
    [
        ((b"\x0a\x08", ONE, TWO), [1.0, 2.0]),
        ((b"\x0d", ONE, b"\x0d", TWO), [1.0, 2.0]),  # as libraries of proto2 write them
        ((b"\x0a\x04", ONE, b"\x0d", TWO, b"\x0a\x04", ONE), [1.0, 2.0, 1.0]),
        ((b"\x0a\x00",), []),
        ((b"\x0a\x04", ONE[:3]), None),
    ],
)
def test_points_are_read_in_every_form(
    decoder: Decoder, written: tuple[bytes, ...], points: list[float] | None
) -> None:
    columns = decoded(decoder, polygon_points(*written))
    read = None if columns is None else columns["detections"][0][0][-1][-1]
    assert read == (None if points is None else [list(map(oracle.bit, points))])


@pytest.mark.parametrize("cut", [b"\x0a\x05" + ONE + b"\x00", b"\x0a\x03\x00\x00\x00"])
def test_a_number_that_is_cut_is_an_exception_that_is_listed(cut: bytes) -> None:
    assert_agreement(polygon_points(cut))
    assert decoded(PTARS, polygon_points(cut)) is not None
    assert decoded(PROTOBUF, polygon_points(cut)) is None


def test_the_schema_is_the_same() -> None:
    messages = [rich_message(), b"", request(*predictions(1, 3), head=header()).SerializeToString()]
    for payloads in (messages, [b""], []):
        by_ptars, by_protobuf = (d.decode(payloads).batch for d in (PTARS, PROTOBUF))
        assert by_protobuf.schema.equals(by_ptars.schema, check_metadata=True)
        assert by_protobuf.num_rows == by_ptars.num_rows == len(payloads)
        by_protobuf.validate(full=True)
