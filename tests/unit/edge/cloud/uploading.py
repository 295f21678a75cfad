"""Clients that upload to a scripted service, for tests."""

import grpc

from edge.cloud.client import InferenceClient
from tests.fakes.inference import (
    FakeInference,
)

LARGE = bytes(range(256)) * 2560  # 640 KiB: more than one chunk
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


def new_client(fake: FakeInference, above: int | None = 1000) -> InferenceClient:
    return InferenceClient(fake.target, upload_above_bytes=above)
