"""Asks the inference service, from threads and from asyncio. One try per call.

Retries, and what to do when the service does not answer, are the coordinator's
(`edge.decide.coordinator`). Both clients say the same; the words are in `edge.cloud.messages`.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, cast

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.messages import (
    InferCall,
    check_timeout,
    parse_answer,
    parse_models,
    prepare,
)
from edge.cloud.types import InferAnswer, InferParameters, ModelHint, ModelInfo
from edge.detect.base import Image
from edge.detect.pictures import ArrayFormat
from servicekit.errors import SightlineError, from_rpc_error

HARD_TIMEOUT = 8.0
"""Seconds after which a call ends unless another timeout is given."""

_OPTIONS = (
    # A retry must find a connection that has been tried again, well inside the budget.
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A connection that a router has forgotten is found out in 15 s, in use or not: each question
    # on it would cost its whole budget. The ping's 64 KiB of queue take 5 s at 13 kB/s, over which
    # no picture would arrive in time anyway.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class PendingAnswer:
    """A question under way."""

    def __init__(self, call: "grpc.Call") -> None:
        self._call = call
        self._future = cast("grpc.Future[inference_service_pb2.InferResponse]", call)

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Calls back once `result` no longer blocks, from a thread of gRPC's or at once."""
        self._future.add_done_callback(lambda _: callback())

    def result(self) -> InferAnswer:
        """Returns the answer, waiting for it until the call's deadline.

        Raises:
            SightlineError: the call failed.
        """
        try:
            response = self._future.result()
        except grpc.FutureCancelledError:
            raise SightlineError(
                grpc.StatusCode.CANCELLED, "CANCELLED", "the call was cancelled here"
            ) from None
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return parse_answer(response, self._call.trailing_metadata() or ())

    def cancel(self) -> None:
        """Ends the call if it has not ended."""
        self._future.cancel()


class InferenceClient:
    """Asks the inference service from threads; any number of them may share one client.

    Args:
        endpoint: the service, or its target in plain text, such as `127.0.0.1:50052`.
        timeout: seconds until a call ends, unless the call says otherwise, above 0 and at most
            3600.
        array_format: how pictures that come as pixels are encoded: "jpeg" (quality 95) or "png".
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        timeout: float = HARD_TIMEOUT,
        array_format: ArrayFormat = "jpeg",
    ) -> None:
        self._endpoint = _endpoint(endpoint)
        self._timeout = check_timeout(timeout)
        self.array_format = array_format
        self._channel = self._endpoint.channel(_OPTIONS)
        self._stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)

    def infer(
        self,
        images: Sequence[Image],
        *,
        image_ids: Sequence[str] = (),
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        traceparent: str = "",
    ) -> InferAnswer:
        """Returns the service's answer for one or more pictures.

        Args:
            images: a list of pictures, each RGB uint8 `[H, W, 3]`, encoded bytes, a path or
                Pillow's. Encoded pictures are sent as they are, pixels are encoded first.
            image_ids: a name for each picture, echoed in the answer; empty: none.
            model: which model should answer; None: the server's default.
            parameters: how the answer is made; None: the model's own settings.
            timeout: seconds until the call ends; None: the client's.
            idempotency_key: a UUIDv4 that names this question: asked again with it, the service
                answers what it answered before. None: a new one.
            traceparent: W3C traceparent to pass on; empty: none.

        Raises:
            SightlineError: the question breaks a rule (INVALID_ARGUMENT; nothing was sent), or
                the call failed. A picture that alone is bad has its error in the answer.
        """
        call = self.prepare(
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
        )
        pending = self.send(call, timeout=self._timeout if timeout is None else timeout)
        try:
            return pending.result()
        finally:
            pending.cancel()  # when the wait was interrupted; else without effect

    def prepare(
        self,
        images: Sequence[Image],
        *,
        image_ids: Sequence[str] = (),
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
        idempotency_key: str | None = None,
        traceparent: str = "",
    ) -> InferCall:
        """Returns a question, checked and ready for `send`, also more than once; see `infer`.

        Raises:
            SightlineError: INVALID_ARGUMENT, naming the field and its bound.
        """
        return prepare(
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            array_format=self.array_format,
        )

    def send(self, call: InferCall, *, timeout: float) -> PendingAnswer:
        """Sends a question (`prepare`) without waiting for the answer.

        Raises:
            SightlineError: INVALID_ARGUMENT: the timeout is not above 0 and at most 3600 s;
                FAILED_PRECONDITION: the client is closed.
        """
        seconds = check_timeout(timeout)
        metadata = (*self._endpoint.metadata, *call.metadata)
        try:
            return PendingAnswer(
                self._stub.Infer.future(call.request, timeout=seconds, metadata=metadata)
            )
        except ValueError as error:  # what gRPC raises on a closed channel
            raise SightlineError(
                grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_CLOSED", "the client is closed"
            ) from error

    def list_models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Returns the models that the service has loaded.

        Args:
            timeout: seconds until the call ends; None: the client's.

        Raises:
            SightlineError: the call failed.
        """
        try:
            response = self._stub.ListModels(
                inference_service_pb2.ListModelsRequest(),
                timeout=self._timeout if timeout is None else check_timeout(timeout),
                metadata=self._endpoint.metadata,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return parse_models(response)

    def close(self) -> None:
        """Closes the connection; calls under way end as CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncInferenceClient:
    """`InferenceClient` for asyncio; belongs to the loop it is made in. Same rules, same errors."""

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        timeout: float = HARD_TIMEOUT,
        array_format: ArrayFormat = "jpeg",
    ) -> None:
        self._endpoint = _endpoint(endpoint)
        self._timeout = check_timeout(timeout)
        self.array_format = array_format
        self._channel = self._endpoint.aio_channel(_OPTIONS)
        self._stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)

    async def infer(
        self,
        images: Sequence[Image],
        *,
        image_ids: Sequence[str] = (),
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server must know the deadline, too
        idempotency_key: str | None = None,
        traceparent: str = "",
    ) -> InferAnswer:
        """Returns the service's answer for one or more pictures; see `InferenceClient.infer`."""
        call = await asyncio.to_thread(  # files are read and pixels encoded here
            prepare,
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            array_format=self.array_format,
        )
        started = self._stub.Infer(
            call.request,
            timeout=self._timeout if timeout is None else check_timeout(timeout),
            metadata=(*self._endpoint.metadata, *call.metadata),
        )
        try:
            return parse_answer(await started, await started.trailing_metadata())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def list_models(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> tuple[ModelInfo, ...]:
        """Returns the models that the service has loaded; see `InferenceClient.list_models`."""
        try:
            response = await self._stub.ListModels(
                inference_service_pb2.ListModelsRequest(),
                timeout=self._timeout if timeout is None else check_timeout(timeout),
                metadata=self._endpoint.metadata,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return parse_models(response)

    async def close(self) -> None:
        """Closes the connection; calls under way end as CANCELLED."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _endpoint(endpoint: Endpoint | str) -> Endpoint:
    return Endpoint(endpoint) if isinstance(endpoint, str) else endpoint
