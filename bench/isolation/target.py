"""Target of a flood, and the messages of the floods and the well-behaved caller."""

import functools
import io
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from bench.ingest import payloads
from bench.isolation import frames, raw
from models.plates import make_plate, to_jpeg

INGEST, INFERENCE = "ingest", "inference"
SERVICES = (INGEST, INFERENCE)
_INGEST = "/sightline.ingest.v1.IngestService"
_INFERENCE = "/sightline.inference.v1.InferenceService"
UNARY = {INGEST: f"{_INGEST}/GetWatermark", INFERENCE: f"{_INFERENCE}/Infer"}
STREAMING = {INGEST: f"{_INGEST}/PredictionLog", INFERENCE: f"{_INFERENCE}/UploadImage"}
LARGEST_MESSAGE = {INGEST: 4 << 20, INFERENCE: 16 << 20}
"""The services' default limits of a message, bytes."""
_MARGIN = 4096
_SIDE = 7000
"""Side of a large image in pixels: 49 million pixels of the 50 million that are allowed."""


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a flood: address, credential and end."""

    service: str
    """`ingest` or `inference`."""
    address: str
    key: str
    """API key of the flood."""
    end: float
    """End of the flood on `time.monotonic`'s clock."""

    @property
    def left(self) -> float:
        """The seconds until the flood ends, at least 0."""
        return max(self.end - time.monotonic(), 0.0)

    def block(self, method: str) -> bytes:
        """Return the headers of a call with the flood's credential."""
        return frames.block(method, raw.bearer(self.key))

    @property
    def almost_too_large(self) -> int:
        """Return the size of the largest message that the service accepts, bytes."""
        return LARGEST_MESSAGE[self.service] - _MARGIN


def small_picture() -> bytes:
    """Return the image of one plate as JPEG."""
    return to_jpeg(make_plate(3).image)


def large_picture() -> bytes:
    """Return a PNG whose pixels take a thousand times more memory than its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((_SIDE, _SIDE, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def slow_picture() -> bytes:
    """Return a progressive JPEG of the same size, which takes seconds to decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), (90, 140, 60)).save(buffer, format="JPEG", progressive=True)
    return buffer.getvalue()


def infer_request(image: bytes, count: int = 1) -> bytes:
    """Return the request with this many copies of an image."""
    images = [inference_pb2.Image(data=image)] * count
    return inference_service_pb2.InferRequest(images=images).SerializeToString()


@functools.cache
def large_message() -> bytes:
    """Return as many predictions, from sequence 1 on, as fit one message."""
    (message,) = payloads(1, 1000, 1000)
    count = int(1000 * (LARGEST_MESSAGE[INGEST] - _MARGIN) / len(message) * 0.98)
    (message,) = payloads(1, count, count)
    return message
