"""Item 13: digests of predictions, computed from their received bytes."""

import time

import pytest
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest

from ingest_service.receive.content import DIGEST_BYTES, digest, digest_in
from tests.unit.ingest_service.samples import detection, gap, header, prediction, request, shapes

LABELS = {f"key {number}": "v" * number for number in range(40)}


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def test_each_prediction_of_a_message_has_a_digest_of_its_own() -> None:
    parts = [prediction(n, labels=LABELS if n % 3 == 0 else {}) for n in range(1, 300)]
    payload = request(*parts, gap(300, 400), head=header()).SerializeToString()
    digests = [digest_in(payload, index) for index in range(len(parts))]
    assert digests == [digest(part.SerializeToString()) for part in parts]
    assert len(set(digests)) == len(parts)
    assert {len(value) for value in digests if value is not None} == {DIGEST_BYTES}
    assert digest_in(payload, len(parts)) is None


def test_every_part_of_a_shape_makes_a_difference() -> None:
    changed = [prediction(detections=shapes())]
    for edit in (
        lambda mask, _run, _pose, _turned: mask.mask.polygons[1].points.__setitem__(7, 9),
        lambda _mask, run, _pose, _turned: setattr(run.mask, "rle", "453"),
        lambda _mask, _run, pose, _turned: pose.keypoints[1].ClearField("y"),
        lambda _mask, _run, pose, _turned: pose.keypoints.reverse(),
        lambda _mask, _run, _pose, turned: setattr(turned.rotated_box, "angle", 0.25),
    ):
        detections = shapes()
        edit(*detections)
        changed.append(prediction(detections=detections))
    assert len({digest(part.SerializeToString()) for part in changed}) == len(changed)


def test_the_order_of_fields_makes_no_difference() -> None:
    there = prediction(labels=LABELS)
    back = prediction(labels=dict(reversed(LABELS.items())))
    pieces = [there.SerializeToString(), back.SerializeToString()]
    assert digest(pieces[0]) == digest(pieces[1])
    shuffled = b"".join(sorted([prediction().SerializeToString()[:2], b"\x72\x00"], reverse=True))
    assert digest(shuffled) == digest(b"\x72\x00" + prediction().SerializeToString()[:2])


@pytest.mark.parametrize(
    "between",
    [
        b"\x7b\x08\x01\x7c",  # a group
        b"\x7b\x73\x08\x01\x74\x7c",  # a group in a group
        b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x78\x80\x01",  # unknown fields of each kind
        b"",
    ],
)
def test_other_fields_are_passed_over(between: bytes) -> None:
    serialized = prediction().SerializeToString()
    entry = (
        b"\x92\x00" + varint(len(serialized)) + serialized
    )  # a tag that is longer than it must be
    payload = between + entry + between + b"\x12" + varint(len(serialized)) + serialized
    if between != b"":
        assert len(PredictionLogRequest.FromString(between).predictions) == 0
    assert digest_in(payload, 0) == digest_in(payload, 1) == digest(serialized)


@pytest.mark.parametrize("damaged", [b"\x12", b"\x12\x05\x0a", b"\x17", b"\x12\x02\x0a", b"\x80"])
def test_what_no_library_writes_has_no_digest(damaged: bytes) -> None:
    assert digest_in(damaged, 0) is None


def test_a_prediction_of_very_many_fields_holds_up_nobody() -> None:
    """A message with 4 MiB of unknown 2-byte fields took the committing thread seconds."""
    largest = prediction(detections=[detection()] * 10_000, labels=LABELS).SerializeToString()
    assert digest(largest) is not None, "all that the rules allow has a digest"
    began = time.process_time()
    assert digest(prediction().SerializeToString() + b"\x78\x01" * (2 << 20)) is None
    assert time.process_time() - began < 0.5
