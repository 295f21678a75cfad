import math
import struct
from typing import Any

import numpy
import pytest
from google.protobuf.internal import encoder
from hypothesis import given
from hypothesis import strategies as st
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2
from sightline.types.v1 import prediction_pb2

from edge import wire
from edge.log import encode
from edge.records import (
    Box,
    CloudReason,
    Detection,
    DetectionArrays,
    Keypoint,
    Mask,
    Prediction,
    RotatedBox,
    Source,
)
from edge.spool.entries import GapReason

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
FLOAT = st.floats(width=32)
INT32 = st.integers(-(2**31), 2**31 - 1)
BOXES = st.builds(Box, FLOAT, FLOAT, FLOAT, FLOAT)
POINT = st.tuples(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
POLYGONS = st.lists(st.lists(POINT, max_size=6), min_size=1, max_size=3)
MASKS = st.builds(Mask, POLYGONS, width=INT32, height=INT32) | st.builds(
    Mask, rle=TEXT.filter(bool), width=INT32, height=INT32
)
ROTATED = st.builds(RotatedBox, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT)
KEYPOINTS = st.lists(st.builds(Keypoint, FLOAT, FLOAT, st.none() | FLOAT), max_size=4)
DETECTIONS = st.builds(
    Detection,
    INT32,
    TEXT,
    FLOAT,
    st.none() | BOXES,
    st.none() | st.integers(-(2**63), 2**63 - 1),
    rotated_box=st.none() | ROTATED,
    keypoints=KEYPOINTS,
    mask=st.none() | MASKS,
)
PREDICTIONS = st.builds(
    Prediction,
    TEXT,
    TEXT,
    model_version=TEXT,
    image_width=INT32,
    image_height=INT32,
    source=st.sampled_from(Source),
    cloud_reason=st.none() | st.sampled_from(CloudReason),
    captured_at=st.none() | st.floats(-62_135_596_800, 253_402_300_799),
    inference_seconds=st.none() | st.floats(-1e9, 1e9),
    detections=st.lists(DETECTIONS, max_size=5).map(tuple),
    defect_detected=st.none() | st.booleans(),
    labels=st.dictionaries(TEXT, TEXT, max_size=4),
    trace_id=TEXT,
)


def by_protobuf(prediction: Prediction, now: float, sequence: int) -> prediction_pb2.Prediction:
    """The same prediction, written field by field with protobuf's own objects."""
    message = prediction_pb2.Prediction(
        sequence=sequence,
        image_id=prediction.image_id,
        image_width=prediction.image_width,
        image_height=prediction.image_height,
        model_name=prediction.model_name,
        model_version=prediction.model_version,
        source=prediction_pb2.PredictionSource.Value(f"PREDICTION_SOURCE_{prediction.source.name}"),
        detections=[_detection(detection) for detection in prediction.detections],
        defect_detected=prediction.defect_detected,
        labels=prediction.labels,
        trace_id=prediction.trace_id,
    )
    if prediction.cloud_reason:
        reason = f"CLOUD_REASON_{prediction.cloud_reason.name}"
        message.cloud_reason = prediction_pb2.CloudReason.Value(reason)
    at = now if prediction.captured_at is None else prediction.captured_at
    message.captured_at.seconds = math.floor(at)
    message.captured_at.nanos = int((at - math.floor(at)) * 1e9)
    if prediction.inference_seconds is not None:
        message.inference_time.FromNanoseconds(_nanoseconds(prediction.inference_seconds))
    return message


def _nanoseconds(seconds: float) -> int:
    return round(abs(seconds) * 1e9) * (-1 if seconds < 0 else 1)


def _detection(detection: Detection) -> prediction_pb2.Detection:
    message = prediction_pb2.Detection(
        class_id=detection.class_id,
        class_name=detection.class_name,
        confidence=detection.confidence,
        track_id=detection.track_id,
    )
    if detection.box is not None:
        box = detection.box
        message.box.CopyFrom(
            prediction_pb2.BoundingBox(
                x_min=box.x_min, y_min=box.y_min, x_max=box.x_max, y_max=box.y_max
            )
        )
    if detection.rotated_box is not None:
        for name in ("center_x", "center_y", "width", "height", "angle"):
            setattr(message.rotated_box, name, getattr(detection.rotated_box, name))
        message.rotated_box.SetInParent()
    for point in detection.keypoints:
        message.keypoints.add(x=point.x, y=point.y, confidence=point.confidence)
    if detection.mask is not None:
        mask = detection.mask
        message.mask.CopyFrom(
            prediction_pb2.Mask(
                width=mask.width,
                height=mask.height,
                rle=mask.rle,
                polygons=[prediction_pb2.Polygon(points=points) for points in mask.polygons],
            )
        )
    return message


def canonical(message: Any) -> bytes:
    """Bytes that are equal where messages are, NaN included."""
    return bytes(message.SerializeToString(deterministic=True))


@given(PREDICTIONS, st.floats(0, 4e9), st.integers(1, 2**63 - 1))
def test_equals_protobufs_own(prediction: Prediction, now: float, sequence: int) -> None:
    written = wire.sequence_field(sequence) + encode.prediction_body(prediction, now)
    parsed = prediction_pb2.Prediction.FromString(written)
    assert canonical(parsed) == canonical(by_protobuf(prediction, now, sequence))
    assert len(written) <= prediction.size


@given(st.data())
def test_arrays_of_every_geometry_equal_protobufs_own(data: st.DataObject) -> None:
    count, points = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    width = data.draw(st.sampled_from((2, 3)))

    def numbers(*shape: int) -> list[list[float]]:
        rows = st.lists(
            st.floats(width=32, allow_nan=False), min_size=shape[-1], max_size=shape[-1]
        )
        return data.draw(st.lists(rows, min_size=shape[0], max_size=shape[0]))

    keypoints = numpy.asarray(numbers(count, points * width), numpy.float32)
    rotated = numbers(count, 5)
    arrays = DetectionArrays(
        numbers(count, 4),
        [0.5] * count,
        range(count),
        class_name=data.draw(st.lists(TEXT, min_size=count, max_size=count)),
        rotated_boxes=data.draw(st.sampled_from((None, rotated))),
        keypoints=data.draw(st.sampled_from((None, keypoints.reshape(count, points, width)))),
        masks=data.draw(st.none() | st.lists(st.none() | MASKS, min_size=count, max_size=count)),
    )
    prediction = Prediction("i", "m", detections=arrays)
    written = encode.prediction_body(prediction, 1.0)
    parsed = prediction_pb2.Prediction.FromString(written)
    assert list(map(canonical, parsed.detections)) == [canonical(_detection(d)) for d in arrays]
    assert len(written) <= prediction.size
    assert prediction == Prediction("i", "m", detections=tuple(arrays))


WIDEST = st.sampled_from(
    [
        Detection(
            -1, "\U0001f600" * 200, 1.0, Box(1, 1, 1, 1), -1, rotated_box=RotatedBox(*[1] * 5)
        ),
        Detection(0, "", 0.0, keypoints=[Keypoint(0, 0, 0)] * 1000),
        Detection(0, "", 0.0, mask=Mask([[]] * 50)),
        Detection(0, "", 0.0, mask=Mask([[(1.0, 1.0)] * 40_000])),
        Detection(0, "", 0.0, mask=Mask(rle="\U0001f600" * 9000, width=-1, height=-1)),
    ]
)


@given(st.lists(WIDEST, max_size=8))
def test_the_size_bounds_the_widest_detections(detections: list[Detection]) -> None:
    prediction = Prediction("i", "m", detections=detections)
    assert len(encode.prediction_body(prediction, 1.0)) <= prediction.size


@pytest.mark.parametrize("reason", CloudReason)
def test_every_cloud_reason_has_its_number(reason: CloudReason) -> None:
    body = encode.prediction_body(Prediction("i", "m", cloud_reason=reason), 0.0)
    number = prediction_pb2.Prediction.FromString(body).cloud_reason
    assert prediction_pb2.CloudReason.Name(number) == f"CLOUD_REASON_{reason.name}"


@pytest.mark.parametrize("reason", GapReason)
def test_every_gap_reason_has_its_number(reason: GapReason) -> None:
    assert int(ingest_pb2.GapReason.Value(f"GAP_REASON_{reason.name}")) == reason


@pytest.mark.parametrize("number", [1e39, -1e300, 3.4028235677973366e38])
def test_what_no_32_bit_float_holds_becomes_infinite(number: float) -> None:
    detection = Detection(
        1,
        "car",
        number,
        Box(number, 1.0, 2.0, number),
        rotated_box=RotatedBox(number, 0, 0, 0, 0),
        keypoints=[Keypoint(0, number)],
        mask=Mask([[(number, 0)]]),
    )
    body = encode.prediction_body(Prediction("i", "m", detections=(detection,)), 0.0)
    messages = prediction_pb2.Prediction.FromString(body).detections[0]
    infinite = math.copysign(math.inf, number)
    assert (messages.confidence, messages.box.x_min, messages.box.y_max) == (infinite,) * 3
    assert (messages.box.y_min, messages.box.x_max) == (1.0, 2.0)
    assert messages.rotated_box.center_x == messages.keypoints[0].y == infinite
    assert messages.mask.polygons[0].points == [infinite, 0.0]


def test_the_largest_32_bit_float_stays() -> None:
    largest = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
    detection = Detection(1, "car", largest, Box(1e39, 0.0, 0.0, largest))
    body = encode.prediction_body(Prediction("i", "m", detections=(detection,)), 0.0)
    messages = prediction_pb2.Prediction.FromString(body).detections[0]
    assert (messages.confidence, messages.box.y_max) == (largest, largest)


@given(st.integers(-(2**63), 2**63 - 1))
def test_varint_equals_protobufs_own(number: int) -> None:
    assert wire.varint(number) == encoder._VarintBytes(number % 2**64)  # type: ignore[attr-defined]


@given(
    st.binary(max_size=50),
    st.lists(st.binary(max_size=300), max_size=40),
    st.integers(1, 10),
)
def test_messages_hold_every_entry_once_in_order(
    header: bytes, bodies: list[bytes], batch_size: int
) -> None:
    fields = [encode.prediction_body(Prediction(body.hex() or "-", "m"), 0.0) for body in bodies]
    device = ingest_pb2.LogHeader(device_id=header.hex())
    entries = [wire.prediction_entry(item) for item in fields]
    written = wire.messages(device.SerializeToString(), entries, batch_size)
    messages = list(map(ingest_service_pb2.PredictionLogRequest.FromString, written))

    assert messages[0].header == device
    assert not any(message.HasField("header") for message in messages[1:])
    assert all(len(message.predictions) <= batch_size for message in messages)
    names = [item.image_id for message in messages for item in message.predictions]
    assert names == [body.hex() or "-" for body in bodies]


def test_a_message_stays_below_the_bound() -> None:
    big = wire.prediction_entry(b"\x12" + wire.varint(1_500_000) + b"i" * 1_500_000)
    written = wire.messages(b"", [big] * 5, 32)
    assert [len(item) <= wire.MAX_MESSAGE for item in written] == [True] * 3
    counts = [
        len(ingest_service_pb2.PredictionLogRequest.FromString(item).predictions)
        for item in written
    ]
    assert counts == [2, 2, 1]


def test_a_message_stays_below_the_bound_that_was_asked_for() -> None:
    small, big = (
        wire.prediction_entry(encode.prediction_body(Prediction("i" * size, "m"), 0.0))
        for size in (1, 3000)
    )
    written = wire.messages(b"", [small] * 100 + [big] + [small] * 2, 1000, 1024)
    messages = list(map(ingest_service_pb2.PredictionLogRequest.FromString, written))
    assert [len(item) > 1024 for item in written].count(True) == 1
    assert sum(len(item.predictions) for item in messages) == 103
    assert max(len(item.predictions) for item in messages) > 10
    (alone,) = (item for item in messages if len(item.predictions[0].image_id) == 3000)
    assert len(alone.predictions) == 1


def test_gap_entries_are_gaps() -> None:
    entry = wire.gap_entry(3, 9, GapReason.SPOOL_AGE, 1_700_000_000.25)
    (message,) = wire.messages(b"", [entry], 32)
    (gap,) = ingest_service_pb2.PredictionLogRequest.FromString(message).gaps
    assert (gap.first_sequence, gap.last_sequence) == (3, 9)
    assert gap.reason == ingest_pb2.GAP_REASON_SPOOL_AGE
    assert gap.declared_at.ToNanoseconds() == 1_700_000_000_250_000_000
