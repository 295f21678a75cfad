"""A small fleet's log, sent to a real ingest service: what the console's tests look at."""

import math
import random
import time
import uuid
from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2
from sightline.types.v1 import prediction_pb2

from tests.integration.ingest.process import IngestProcess

DEVICE = prediction_pb2.PREDICTION_SOURCE_DEVICE
CLOUD = prediction_pb2.PREDICTION_SOURCE_CLOUD
UNSURE = prediction_pb2.CLOUD_REASON_DEVICE_UNSURE
HOURS = 30
"""Length of the log, h: more than the day that most panels show."""
PER_HOUR = 20
"""Predictions of a device in an hour."""
DEVICES = tuple(f"line-{line}-cam-{camera}" for line in (1, 2) for camera in (1, 2, 3, 4))
BEHIND = "line-2-cam-1"
"""A device whose stream says that it is far behind, and which has declared a gap."""
CLASSES = ("scratch", "pit", "stain")
REJECTED = 4
"""Predictions that break a rule, in all."""
GAP = 25
"""Sequences that were declared lost."""


def send(server: IngestProcess) -> dict[str, str]:
    """Log what the fleet saw.

    Returns:
        The spool of each device.
    """
    spools = {device: str(uuid.uuid4()) for device in DEVICES}
    for device, spool in spools.items():
        for request in _stream(device, spool):
            server.log_messages(request)
    return spools


def prediction(sequence: int, captured_at: float) -> prediction_pb2.Prediction:
    """Return a prediction: every third from the cloud, every tenth a defect, 0 to 2 detections.

    Args:
        sequence: its sequence.
        captured_at: s since 1970.
    """
    cloud = sequence % 3 == 0
    made = prediction_pb2.Prediction(
        sequence=sequence,
        image_id=f"frame-{sequence}.jpg",
        image_width=1280,
        image_height=720,
        model_name="plates",
        model_version="2" if cloud else "1",
        source=CLOUD if cloud else DEVICE,
        cloud_reason=UNSURE if cloud else prediction_pb2.CLOUD_REASON_UNSPECIFIED,
        captured_at=_time(captured_at),
        inference_time=Duration(nanos=int(1e6 * (10 + 8 * math.sin(sequence) ** 2))),
        defect_detected=sequence % 10 == 0,
        labels={"line": "4"},
    )
    chance = random.Random(sequence)
    for index in range(sequence % 3):
        found = made.detections.add(
            class_id=index,
            class_name=CLASSES[(sequence + index) % len(CLASSES)],
            confidence=0.5 + 0.49 * math.sin(sequence) ** 2,
        )
        x = min(max(chance.gauss(900, 120), 0), 1180)
        y = min(max(chance.gauss(480, 90), 0), 620)
        found.box.x_min, found.box.y_min, found.box.x_max, found.box.y_max = x, y, x + 100, y + 100
    return made


def _stream(device: str, spool: str) -> Iterator[ingest_service_pb2.PredictionLogRequest]:
    now = time.time()
    header = ingest_pb2.LogHeader(
        device_id=device, spool_id=spool, device_time=_time(now), client="sightline-edge/9.9"
    )
    if device == BEHIND:
        header.account.waiting_predictions = 4000
        header.account.oldest_waiting.FromSeconds(1800)
    count = HOURS * PER_HOUR
    first = now - HOURS * 3600
    made = [prediction(n, first + n * 3600 / PER_HOUR) for n in range(1, count + 1)]
    gaps = []
    if device == BEHIND:
        for one in made[:REJECTED]:
            one.model_name = ""  # breaks a rule
        gaps = [
            ingest_pb2.Gap(
                first_sequence=count + 1,
                last_sequence=count + GAP,
                reason=ingest_pb2.GAP_REASON_SPOOL_BYTES,
            )
        ]
    for start in range(0, count, 500):
        part = made[start : start + 500]
        yield ingest_service_pb2.PredictionLogRequest(header=header, predictions=part)
    if gaps:
        yield ingest_service_pb2.PredictionLogRequest(header=header, gaps=gaps)


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
