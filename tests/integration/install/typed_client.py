"""A user's program on the stubs alone, sync and async: `python typed_client.py TARGET`."""

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
from sightline.ingest.v1.ingest_pb2 import LogHeader
from sightline.ingest.v1.ingest_service_pb2 import (
    GetStatsRequest,
    GetWatermarkRequest,
    GetWatermarkResponse,
    PredictionLogRequest,
    PredictionLogResponse,
)
from sightline.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from sightline.types.v1.prediction_pb2 import PREDICTION_SOURCE_DEVICE, Prediction

DEVICE = "typed-client"
SPOOL = "7a0f8c54-2a55-4a1e-8c0e-3f9c51d4c001"


def total(target: str) -> int:
    """Asks synchronously."""
    with grpc.insecure_channel(target) as channel:
        return IngestServiceStub(channel).GetStats(GetStatsRequest(), timeout=10).total_predictions


async def messages() -> AsyncIterator[PredictionLogRequest]:
    """Yields one stream."""
    prediction = Prediction(
        sequence=1, image_id="a", model_name="m", source=PREDICTION_SOURCE_DEVICE
    )
    prediction.captured_at.GetCurrentTime()
    yield PredictionLogRequest(
        header=LogHeader(device_id=DEVICE, spool_id=SPOOL), predictions=[prediction]
    )


async def log(target: str) -> tuple[PredictionLogResponse, GetWatermarkResponse]:
    """Logs and asks asynchronously."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = IngestServiceStub(channel)
        answer = await stub.PredictionLog(messages(), timeout=10)
        request = GetWatermarkRequest(device_id=DEVICE, spool_id=SPOOL)
        return answer, await stub.GetWatermark(request, timeout=10)


if __name__ == "__main__":
    response, watermark = asyncio.run(log(sys.argv[1]))
    print(response.accepted, watermark.committed_through, total(sys.argv[1]))  # noqa: T201
