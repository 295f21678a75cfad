import math
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Detection, Prediction

from ingest_service.decode import MAX_GAPS, MAX_PREDICTIONS, Decoder
from tests.unit.ingest_service.mutate import mutated, rich_message
from tests.unit.ingest_service.samples import (
    gap,
    header,
    prediction,
    predictions,
    request,
)

DECODER = Decoder()
LARGEST = 2**63 - 1
LENGTH_NEAR_2_TO_THE_64 = b"\xf9" + b"\xff" * 8 + b"\x01"
NESTED = b"\x7b\x08\x01" * 1_000_000
"""Groups in groups, a million deep, of a field that the contract does not have."""


def repeat_label(key: str, *values: str) -> bytes:
    """A prediction whose bytes give one label several times, which protobuf's classes never do."""
    parts = [Prediction(labels={key: value}).SerializeToString() for value in values]
    return prediction(1).SerializeToString() + b"".join(parts)


def entry(message: bytes) -> bytes:
    """These bytes of a Prediction as an entry of `predictions`."""
    size, varint = len(message), bytearray()
    while size > 127:
        varint.append(size & 127 | 128)
        size >>= 7
    return b"\x12" + bytes(varint) + bytes([size]) + message


def test_a_row_is_a_message() -> None:
    payloads = [
        request(*predictions(1, 3), head=header()).SerializeToString(),
        b"",
        request(gap(4, 5)).SerializeToString(),
    ]
    decoded = DECODER.decode(payloads)
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
        b"\x12" + LENGTH_NEAR_2_TO_THE_64,  # on which ptars panics
        b"\x12\x0d\x5a\x0b\x12" + LENGTH_NEAR_2_TO_THE_64,
        NESTED,  # on which ptars overflows the stack, and the process is gone
        b"\x12\x00" * (MAX_PREDICTIONS + 1),
        b"\x1a\x00" * (MAX_GAPS + 1),
    ],
)
def test_a_message_that_cannot_be_read_harms_no_other(damaged: bytes) -> None:
    good = request(*predictions(1, 2)).SerializeToString()
    decoded = DECODER.decode([good, damaged, good, damaged])
    assert set(decoded.refused) == {1, 3}
    assert [len(row) for row in decoded.batch.column("predictions").to_pylist()] == [2, 0, 2, 0]


def test_groups_that_ptars_bears_are_skipped_like_any_unknown_field() -> None:
    payload = b"\x7b" * 90 + b"\x7c" * 90 + request(prediction(1)).SerializeToString()
    decoded = DECODER.decode([payload])
    assert not decoded.refused
    assert len(decoded.batch.column("predictions").values) == 1


def test_a_large_message_full_of_letters_that_look_like_groups_is_read() -> None:
    text = "s" * 256
    sent = [prediction(n, model_name=text, model_version=text) for n in range(1, 1001)]
    decoded = DECODER.decode([request(*sent).SerializeToString()])
    assert not decoded.refused
    assert len(decoded.batch.column("predictions").values) == 1000


def test_a_label_given_twice_counts_once_with_its_last_value() -> None:
    twice = entry(repeat_label("line", "1", "2", "3"))
    good = request(prediction(2, labels={"line": "1", "lot": "1"})).SerializeToString()
    decoded = DECODER.decode([good, twice, good])
    labels = decoded.batch.column("predictions").values.field("labels").to_pylist()
    assert labels[1] == [("line", "3")]
    assert sorted(labels[0]) == sorted(labels[2]) == [("line", "1"), ("lot", "1")]


def test_a_label_given_again_with_a_foreign_field_counts_once() -> None:
    foreign = b"\x6a\x09\x0a\x04line\x32\x01\x33"  # key "line", and a field 6 that it does not have
    twice = entry(repeat_label("line", "1") + foreign)
    labels = DECODER.decode([twice]).batch.column("predictions").values.field("labels").to_pylist()
    assert labels == [[("line", "1")]]


def test_the_same_label_of_two_predictions_is_no_repetition() -> None:
    payload = request(*(prediction(n, labels={"a": "x", "b": "y"}) for n in (1, 2)))
    labels = DECODER.decode([payload.SerializeToString()] * 2).batch.column("predictions")
    assert [sorted(row) for row in labels.values.field("labels").to_pylist()] == [
        [("a", "x"), ("b", "y")]
    ] * 4


def test_inference_times_below_a_microsecond_keep_their_sign() -> None:
    payload = request(prediction(1, inference_time=Duration(nanos=-1))).SerializeToString()
    times = DECODER.decode([payload]).batch.column("predictions").values.field("inference_time")
    assert times.view(pa.int64()).to_pylist() == [-1]


def _by_protobuf(payload: bytes) -> list[dict[str, Any]] | None:
    """The predictions as protobuf reads them, in ptars' terms; None: it refuses the message."""
    try:
        message = PredictionLogRequest.FromString(payload)
    except DecodeError:
        return None
    return [
        {
            "sequence": p.sequence,
            "image_id": p.image_id,
            "model_name": p.model_name,
            "source": p.source,
            "cloud_reason": p.cloud_reason,
            "captured_at": _us(p.captured_at) if p.HasField("captured_at") else None,
            "inference_time": _ns(p.inference_time) if p.HasField("inference_time") else None,
            "detections": [_detection(d) for d in p.detections],
            "defect_detected": p.defect_detected if p.HasField("defect_detected") else None,
            "labels": sorted(p.labels.items()),
            "trace_id": p.trace_id,
        }
        for p in message.predictions
    ]


def _detection(d: Detection) -> tuple[Any, ...]:
    box = (d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max) if d.HasField("box") else None
    track = d.track_id if d.HasField("track_id") else None
    return _nan_safe(d.class_id, d.class_name, d.confidence, track, *(box or (None,)))


def _nan_safe(*values: Any) -> tuple[Any, ...]:
    return tuple("nan" if isinstance(v, float) and math.isnan(v) else v for v in values)


def _us(time: Timestamp) -> int:
    return _clamp(time.seconds * 10**6 + int(time.nanos / 1000))


def _ns(time: Duration) -> int:
    return _clamp(time.seconds * 10**9 + time.nanos)


def _clamp(value: int) -> int:
    return max(-LARGEST - 1, min(LARGEST, value))


def _by_ptars(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = batch.column("predictions").values
    plain = rows.flatten()
    names = [field.name for field in rows.type]
    columns = dict(zip(names, plain, strict=True))
    columns["captured_at"] = columns["captured_at"].view(pa.int64())
    columns["inference_time"] = columns["inference_time"].view(pa.int64())
    read: list[dict[str, Any]] = pa.table({name: columns[name] for name in names}).to_pylist()
    for row in read:
        row["labels"] = sorted(row["labels"])
        row["detections"] = [
            _nan_safe(
                d["class_id"],
                d["class_name"],
                d["confidence"],
                d["track_id"],
                *(d["box"].values() if d["box"] else (None,)),
            )
            for d in row["detections"]
        ]
        del row["image_width"], row["image_height"], row["model_version"]
    return read


def test_ptars_and_protobuf_read_damaged_messages_alike() -> None:
    accepted = 0
    for payload in mutated(seed=20261122, count=2000):
        decoded = DECODER.decode([payload])
        expected = _by_protobuf(payload)
        if expected is None or decoded.refused:
            continue  # ptars refuses known fields of a wrong wire type, protobuf unpaired groups
        # Damage can double a field and put foreign ones into a label, and then they differ: what
        # protobuf writes anew of what it has read must read the same in both.
        clean = PredictionLogRequest.FromString(payload)
        clean.DiscardUnknownFields()
        again = DECODER.decode([clean.SerializeToString()])
        assert not again.refused
        assert _by_ptars(again.batch) == expected, payload.hex()
        differences = _differences(_by_ptars(decoded.batch), expected)
        assert differences <= {"labels", "captured_at"}, payload.hex()
        accepted += 1
    assert 200 < accepted < 1800, "the slice must have both kinds"


def _differences(read: list[dict[str, Any]], expected: list[dict[str, Any]]) -> set[str]:
    return {
        name
        for one, other in zip(read, expected, strict=True)
        for name in one
        if one[name] != other[name]
    }
