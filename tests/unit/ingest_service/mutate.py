"""Damaged messages: valid ones, with bytes changed, cut, doubled or moved."""

import random
from collections.abc import Iterator
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from tests.unit.ingest_service.samples import (
    NOW,
    detection,
    gap,
    header,
    prediction,
    request,
    timestamp,
)


def rich_message() -> bytes:
    """A small message with every field of the contract."""
    full = prediction(
        1,
        image_width=640,
        image_height=480,
        model_version="1",
        source="PREDICTION_SOURCE_CLOUD",
        cloud_reason="CLOUD_REASON_DEVICE_SLOW",
        inference_time=Duration(nanos=12_000_000),
        detections=[detection(track_id=-7), detection(box=None)],
        defect_detected=True,
        labels={"line": "3", "shift": "late"},
        trace_id="0123456789abcdef" * 2,
    )
    head = header(device_time=timestamp(NOW), device_monotonic=Duration(seconds=5), client="test/1")
    declared = timestamp(NOW - timedelta(hours=1))
    return request(
        full, prediction(2), gap(3, 4, declared_at=declared), head=head
    ).SerializeToString()


def mutated(seed: int, count: int) -> Iterator[bytes]:
    """Yields `count` damaged messages; the same ones for the same seed."""
    chance = random.Random(seed)
    original = rich_message()
    for _ in range(count):
        data = bytearray(original)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            _damage(data, chance)
        yield bytes(data)


def _damage(data: bytearray, chance: random.Random) -> None:
    if not data:
        return
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 20))
    match chance.randrange(6):
        case 0:
            data[at] = chance.randrange(256)
        case 1:
            data[at] ^= 1 << chance.randrange(8)
        case 2:
            del data[at:]
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end]
        case 5:
            data[at:at] = chance.randbytes(chance.randrange(1, 6))
