"""Builders of valid messages, of which a test breaks one property."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_pb2 import Gap, GapReason, LogHeader
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import (
    BoundingBox,
    Detection,
    Keypoint,
    Mask,
    Polygon,
    Prediction,
    RotatedBox,
)

from ingest_service.receive.decode import Decoder
from ingest_service.receive.group import Message
from ingest_service.receive.protobuf_decoder import ProtobufDecoder
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.store.protocol import SpoolKey, StreamOpening

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
SPOOL = SpoolKey("gate-1", "0b0e7bd6-5f6b-4a44-9d0f-2f8f6b0c9d01")

DECODERS: dict[str, Decoder] = {"ptars": PtarsDecoder(), "protobuf": ProtobufDecoder()}


def spool(number: int) -> SpoolKey:
    return SpoolKey(f"gate-{number}", str(uuid.UUID(int=number)))


def timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def detection(**fields: Any) -> Detection:
    base: dict[str, Any] = {
        "class_id": 1,
        "class_name": "scratch",
        "confidence": 0.75,
        "box": BoundingBox(x_min=1, y_min=2, x_max=30.5, y_max=40),
    }
    return Detection(**{**base, **fields})


def shapes() -> list[Detection]:
    """Return a detection of each task that gives more than boxes."""
    polygons = [Polygon(points=[1, 2, 30.5, 2, 30.5, 40]), Polygon(points=[5, 5, 6, 5, 6, 6, 5, 6])]
    points = [Keypoint(x=5, y=-6.5, confidence=0.25), Keypoint(x=7, y=8)]
    return [
        detection(mask=Mask(polygons=polygons)),
        detection(mask=Mask(width=4, height=3, rle="543")),
        detection(keypoints=points),
        detection(rotated_box=RotatedBox(center_x=15, center_y=20, width=9, height=4, angle=0.5)),
    ]


def prediction(sequence: int = 1, **fields: Any) -> Prediction:
    base: dict[str, Any] = {
        "image_id": f"image-{sequence}",
        "model_name": "plates",
        "source": "PREDICTION_SOURCE_DEVICE",
        "captured_at": timestamp(NOW - timedelta(seconds=1)),
        "detections": [detection()],
    }
    return Prediction(sequence=sequence, **{**base, **fields})


def gap(first: int, last: int, **fields: Any) -> Gap:
    base: dict[str, Any] = {"reason": GapReason.GAP_REASON_DROPPED_OLDEST}
    return Gap(first_sequence=first, last_sequence=last, **{**base, **fields})


def header(of: SpoolKey = SPOOL, **fields: Any) -> LogHeader:
    return LogHeader(device_id=of.device_id, spool_id=of.spool_id, **fields)


def request(*parts: Prediction | Gap, head: LogHeader | None = None) -> PredictionLogRequest:
    return PredictionLogRequest(
        header=head,
        predictions=[part for part in parts if isinstance(part, Prediction)],
        gaps=[part for part in parts if isinstance(part, Gap)],
    )


def predictions(first: int, last: int) -> list[Prediction]:
    return [prediction(sequence) for sequence in range(first, last + 1)]


def opening(of: SpoolKey = SPOOL, **fields: Any) -> StreamOpening:
    base: dict[str, Any] = {
        "opened_at": NOW,
        "device_time": None,
        "device_monotonic": None,
        "client": "",
    }
    return StreamOpening(of, **{**base, **fields})


def message(
    *parts: Prediction | Gap,
    stream: int = 0,
    of: SpoolKey = SPOOL,
    first: bool = True,
    payload: bytes | None = None,
    generation: str = "",
) -> Message:
    """Return a message as the server passes it to the committer."""
    body = request(*parts, head=header(of) if first else None).SerializeToString()
    stream_opening = opening(of, generation=generation)
    return Message(stream, stream_opening, body if payload is None else payload, first)
