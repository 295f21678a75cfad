"""Callers of the servers that are measured, as light as they can be: bytes in, bytes out.

The caller shares two cores with what it measures, so a request is serialised once and an answer is
not read. Each caller has a connection of its own, as cameras have.
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
    ("grpc.use_local_subchannel_pool", 1),  # or channels to one address would share a connection
    ("grpc.max_send_message_length", -1),
]


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """How a call ended."""

    code: str
    """`OK`, the name of a gRPC status, or `HTTP_<status>`."""
    payload: bytes = b""


class CallerFunction(Protocol):
    """Asks for one answer."""

    async def __call__(self, seconds: float) -> CallAnswer:
        """Ask and wait so many seconds at most."""


Connect = Callable[[], AbstractAsyncContextManager[CallerFunction]]
"""Makes a caller with a connection of its own."""


def request(picture: bytes) -> bytes:
    """Return the request for a picture as it goes over the wire."""
    images = [inference_pb2.Image(data=picture)]
    return inference_service_pb2.InferRequest(images=images).SerializeToString()


def no_metadata() -> Metadata:
    """Return what a call brings that nobody asked to bring anything."""
    return ()


@asynccontextmanager
async def grpc_caller(
    address: str, message: bytes, metadata: Callable[[], Metadata] = no_metadata
) -> AsyncIterator[CallerFunction]:
    """A caller of `Infer`.

    Args:
        address: of the server, host:port.
        message: the serialised request.
        metadata: asked for every call.
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
async def http_caller(address: str, picture: bytes) -> AsyncIterator[CallerFunction]:
    """A caller of the HTTP endpoint; it closes the connection of a call that took too long.

    Args:
        address: of the server, host:port.
        picture: encoded.
    """
    headers = {"content-type": "application/octet-stream"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        f"http://{address}", headers=headers, connector=connector
    ) as session:

        async def call(seconds: float) -> CallAnswer:
            limit = aiohttp.ClientTimeout(total=seconds)
            try:
                async with session.post("/infer", data=picture, timeout=limit) as answer:
                    payload = await answer.read()
                    code = OK if answer.status == 200 else f"HTTP_{answer.status}"
                    return CallAnswer(code, payload)
            except TimeoutError:
                return CallAnswer("DEADLINE_EXCEEDED")
            except aiohttp.ClientError:
                return CallAnswer("UNAVAILABLE")

        yield call


def classes_in_response(payload: bytes) -> list[int]:
    """Return the class of each object in an `InferResponse` for one picture."""
    (result,) = inference_service_pb2.InferResponse.FromString(payload).results
    return [found.class_id for found in result.detections]


def seconds_of_work(payload: bytes) -> float:
    """Return the seconds of decode, infer and post that an `InferResponse` tells of itself."""
    timing = inference_service_pb2.InferResponse.FromString(payload).timing
    stages = (timing.decode, timing.infer, timing.post)
    return sum(stage.ToNanoseconds() for stage in stages) / 1e9


def classes_in_json(payload: bytes) -> list[int]:
    """Return the class of each object in an answer of the HTTP endpoint."""
    return [found["class_id"] for found in json.loads(payload)]
