"""Callers of the servers that are measured, as light as they can be: bytes in, bytes out.

The caller shares two cores with the servers, so a request is serialised once and an answer is
not parsed. Each caller has its own connection, as cameras have.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import grpc
from sightline.inference.v1 import inference_pb2, inference_service_pb2

from bench.infer.figures import OK

METHOD = "/sightline.inference.v1.InferenceService/Infer"
Metadata = Sequence[tuple[str, str]]

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one address share a connection
    ("grpc.max_send_message_length", -1),
]


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """Status and payload of an ended call."""

    code: str
    """`OK`, the name of a gRPC status, or `HTTP_<status>`."""
    payload: bytes = b""


class CallerFunction(Protocol):
    """A function that sends one request and awaits its answer."""

    async def __call__(self, seconds: float) -> CallAnswer:
        """Send the request and wait at most this many seconds."""


Connect = Callable[[], AbstractAsyncContextManager[CallerFunction]]
"""Makes a caller with its own connection."""


def request(image: bytes) -> bytes:
    """Return the serialised request for an image."""
    images = [inference_pb2.Image(data=image)]
    return inference_service_pb2.InferRequest(images=images).SerializeToString()


def no_metadata() -> Metadata:
    """Return empty call metadata."""
    return ()


@asynccontextmanager
async def grpc_caller(
    address: str, message: bytes, metadata: Callable[[], Metadata] = no_metadata
) -> AsyncIterator[CallerFunction]:
    """Yield a caller of `Infer`.

    Args:
        address: the server's address, host:port.
        message: the serialised request.
        metadata: called for the metadata of each call.
    """
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        infer = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

        async def call(seconds: float) -> CallAnswer:
            try:
                payload = await infer(message, timeout=seconds, metadata=metadata())
            except grpc.aio.AioRpcError as error:
                return CallAnswer(error.code().name)
            return CallAnswer(OK, payload)

        yield call


@asynccontextmanager
async def http_caller(address: str, image: bytes) -> AsyncIterator[CallerFunction]:
    """Yield a caller of the HTTP endpoint that closes the connection of a call that took too long.

    Args:
        address: the server's address, host:port.
        image: the encoded image.
    """
    headers = {"content-type": "application/octet-stream"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        f"http://{address}", headers=headers, connector=connector
    ) as session:

        async def call(seconds: float) -> CallAnswer:
            limit = aiohttp.ClientTimeout(total=seconds)
            try:
                async with session.post("/infer", data=image, timeout=limit) as answer:
                    payload = await answer.read()
                    code = OK if answer.status == 200 else f"HTTP_{answer.status}"
                    return CallAnswer(code, payload)
            except TimeoutError:
                return CallAnswer("DEADLINE_EXCEEDED")
            except aiohttp.ClientError:
                return CallAnswer("UNAVAILABLE")

        yield call


def classes_in_response(payload: bytes) -> list[int]:
    """Return the class of each object in an `InferResponse` for one image."""
    (result,) = inference_service_pb2.InferResponse.FromString(payload).results
    return [detection.class_id for detection in result.detections]


def seconds_of_work(payload: bytes) -> float:
    """Return the sum of the decode, infer and post seconds that an `InferResponse` reports."""
    timing = inference_service_pb2.InferResponse.FromString(payload).timing
    stages = (timing.decode, timing.infer, timing.post)
    return sum(stage.ToNanoseconds() for stage in stages) / 1e9


def classes_in_json(payload: bytes) -> list[int]:
    """Return the class of each object in an answer of the HTTP endpoint."""
    return [detection["class_id"] for detection in json.loads(payload)]
