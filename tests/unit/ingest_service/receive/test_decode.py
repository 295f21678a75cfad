import pyarrow as pa
import pytest
from google.protobuf.duration_pb2 import Duration
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive.decode import LIMITS, Decoder
from tests.unit.ingest_service.mutate import rich_message
from tests.unit.ingest_service.samples import (
    gap,
    header,
    prediction,
    predictions,
    request,
)

LENGTH_NEAR_2_TO_THE_64 = b"\xf9" + b"\xff" * 8 + b"\x01"
NESTED = b"\x7b\x08\x01" * 1_000_000
"""Nested groups, a million deep, of a field that the contract does not have."""


def repeat_label(key: str, *values: str) -> bytes:
    """Return a prediction with one label several times, which protobuf's classes never write."""
    parts = [Prediction(labels={key: value}).SerializeToString() for value in values]
    return prediction(1).SerializeToString() + b"".join(parts)


def entry(message: bytes) -> bytes:
    """Return the bytes of a Prediction as an entry of `predictions`."""
    size, varint = len(message), bytearray()
    while size > 127:
        varint.append(size & 127 | 128)
        size >>= 7
    return b"\x12" + bytes(varint) + bytes([size]) + message


def test_a_row_is_a_message(decoder: Decoder) -> None:
    payloads = [
        request(*predictions(1, 3), head=header()).SerializeToString(),
        b"",
        request(gap(4, 5)).SerializeToString(),
    ]
    decoded = decoder.decode(payloads)
    assert decoded.batch.num_rows == 3
    assert [len(row) for row in decoded.batch.column("predictions").to_pylist()] == [3, 0, 0]
    assert [len(row) for row in decoded.batch.column("gaps").to_pylist()] == [0, 0, 1]
    assert not decoded.refused


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff",
        rich_message()[:-1],
        b"\x12\x04\x12\x02\xff\xfe",
        b"\x0b",
        b"\x12\xff\xff\xff\xff\x0f",
        b"\x12" + LENGTH_NEAR_2_TO_THE_64,  # ptars panics on it
        b"\x12\x0d\x5a\x0b\x12" + LENGTH_NEAR_2_TO_THE_64,
        NESTED,  # ptars overflows the stack, which ends the process
        b"\x12\x00" * (LIMITS["predictions"] + 1),
        b"\x1a\x00" * (LIMITS["gaps"] + 1),
    ],
)
def test_a_message_that_cannot_be_read_harms_no_other(decoder: Decoder, damaged: bytes) -> None:
    good = request(*predictions(1, 2)).SerializeToString()
    decoded = decoder.decode([good, damaged, good, damaged])
    assert set(decoded.refused) == {1, 3}
    assert [len(row) for row in decoded.batch.column("predictions").to_pylist()] == [2, 0, 2, 0]


def test_groups_that_ptars_bears_are_skipped_like_any_unknown_field(decoder: Decoder) -> None:
    payload = b"\x7b" * 90 + b"\x7c" * 90 + request(prediction(1)).SerializeToString()
    decoded = decoder.decode([payload])
    assert not decoded.refused
    assert len(decoded.batch.column("predictions").values) == 1


def test_a_large_message_full_of_letters_that_look_like_groups_is_read(decoder: Decoder) -> None:
    text = "s" * 256
    sent = [prediction(n, model_name=text, model_version=text) for n in range(1, 1001)]
    decoded = decoder.decode([request(*sent).SerializeToString()])
    assert not decoded.refused
    assert len(decoded.batch.column("predictions").values) == 1000


def test_a_label_given_twice_counts_once_with_its_last_value(decoder: Decoder) -> None:
    twice = entry(repeat_label("line", "1", "2", "3"))
    good = request(prediction(2, labels={"line": "1", "lot": "1"})).SerializeToString()
    decoded = decoder.decode([good, twice, good])
    labels = decoded.batch.column("predictions").values.field("labels").to_pylist()
    assert labels[1] == [("line", "3")]
    assert sorted(labels[0]) == sorted(labels[2]) == [("line", "1"), ("lot", "1")]


def test_a_label_given_again_with_a_foreign_field_counts_once(decoder: Decoder) -> None:
    foreign = b"\x6a\x09\x0a\x04line\x32\x01\x33"  # key "line", and a field 6 that it does not have
    twice = entry(repeat_label("line", "1") + foreign)
    labels = decoder.decode([twice]).batch.column("predictions").values.field("labels").to_pylist()
    assert labels == [[("line", "1")]]


def test_the_same_label_of_two_predictions_is_no_repetition(decoder: Decoder) -> None:
    payload = request(*(prediction(n, labels={"a": "x", "b": "y"}) for n in (1, 2)))
    labels = decoder.decode([payload.SerializeToString()] * 2).batch.column("predictions")
    assert [sorted(row) for row in labels.values.field("labels").to_pylist()] == [
        [("a", "x"), ("b", "y")]
    ] * 4


def test_inference_times_below_a_microsecond_keep_their_sign(decoder: Decoder) -> None:
    payload = request(prediction(1, inference_time=Duration(nanos=-1))).SerializeToString()
    times = decoder.decode([payload]).batch.column("predictions").values.field("inference_time")
    assert times.view(pa.int64()).to_pylist() == [-1]
