"""Asks the inference service from threads. One try per call.

Retries, and what to do when the service does not answer, are the coordinator's
(`edge.decide.coordinator`). For asyncio there is `edge.cloud.aio_client`.
"""

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Self

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.call import InferCall
from edge.cloud.messages import check_timeout, parse_models, prepare
from edge.cloud.pending import PendingAnswer
from edge.cloud.sizes import ModelSizes
from edge.cloud.transport import InferenceTransport, closed
from edge.cloud.types import (
    UPLOAD_ABOVE_BYTES,
    InferAnswer,
    InferParameters,
    ModelHint,
    ModelInfo,
)
from edge.detect.base import Image
from edge.detect.images import ArrayFormat
from servicekit.errors import SightlineError, from_rpc_error, invalid

HARD_TIMEOUT = 8.0
"""Seconds after which a call ends unless another timeout is given."""

_OPTIONS = (
    # A retry must find a connection that has been tried again, well inside the budget.
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A connection that a router has forgotten is found out in 15 s, in use or not: each question
    # on it would cost its whole budget. The ping's 64 KiB of queue take 5 s at 13 kB/s, over which
    # no image would arrive in time anyway.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class InferenceClient:
    """Asks the inference service from threads; any number of them may share one client.

    Args:
        endpoint: the service, or its target in plain text, such as `127.0.0.1:50052`.
        timeout: seconds until a call ends, unless the call says otherwise, above 0 and at most
            3600.
        array_format: how images that come as pixels are encoded: "jpeg" (quality 95) or "png".
        upload_above_bytes: encoded images that are larger are uploaded first, once, and referred
            to, so that a retry does not send them again; >= 0. None: none is.
        downscale: whether images are shrunk to the input of the detector that will see them
            (as JPEG of quality 95), where they are larger; boxes come in pixels of the original all
            the same. The sizes are learnt beside the first question; until then images go whole.

    Raises:
        SightlineError: INVALID_ARGUMENT: a number is out of its range.
        ModuleNotFoundError: `downscale` needs numpy and Pillow, which are not installed (the extra
            `onnx`).

    Example:
        >>> from sightline import InferenceClient, SightlineError
        >>> with InferenceClient("127.0.0.1:1", timeout=5.0) as client:
        ...     try:
        ...         answer = client.infer(["photo.jpg"])
        ...     except SightlineError as error:  # no service listens on this port
        ...         print(error.category, error.retryable)
        network True
    """

    def __init__(
        self,
        endpoint: Endpoint | str,
        *,
        timeout: float = HARD_TIMEOUT,
        array_format: ArrayFormat = "jpeg",
        upload_above_bytes: int | None = UPLOAD_ABOVE_BYTES,
        downscale: bool = False,
    ) -> None:
        self._endpoint = Endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._timeout = check_timeout(timeout)
        if upload_above_bytes is not None and upload_above_bytes < 0:
            raise invalid("upload_above_bytes", f"must be >= 0 or None, is {upload_above_bytes}")
        if downscale:
            import_module("vision")  # what is missing shows here, not at some image
        self._array_format = array_format
        self._channel = self._endpoint.channel(_OPTIONS)
        self._stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        self._transport = InferenceTransport(self._endpoint, self._stub, upload_above_bytes)
        self._sizes = ModelSizes(self.list_models) if downscale else None

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
        """Return the service's answer for one or more images.

        Args:
            images: a list of images, each RGB uint8 `[H, W, 3]`, encoded bytes, a path or
                Pillow's. Encoded images are sent as they are, pixels are encoded first.
            image_ids: a name for each image, echoed in the answer; empty: none.
            model: which model should answer; None: the server's default.
            parameters: how the answer is made; None: the model's own settings.
            timeout: seconds until the call ends; None: the client's.
            idempotency_key: a UUIDv4 that names this question: asked again with it, the service
                answers what it answered before. None: a new one.
            traceparent: W3C traceparent to pass on; empty: none.

        Raises:
            SightlineError: the question breaks a rule (INVALID_ARGUMENT; nothing was sent), or
                the call failed. An image that alone is bad has its error in the answer.
        """
        call = self.prepare(
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
        )
        pending = self.send(call, timeout=timeout)
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
        """Return a question, checked and ready for `send`, also more than once; see `infer`.

        Raises:
            SightlineError: INVALID_ARGUMENT, naming the field and its bound.
        """
        # With a key of the caller's the bytes must be the same whenever it is asked.
        size = None
        if self._sizes is not None and idempotency_key is None:
            size = self._sizes.of(model or ModelHint())
        return prepare(
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            array_format=self._array_format,
            input_size=size,
        )

    def send(self, call: InferCall, *, timeout: float | None = None) -> PendingAnswer:
        """Send a question (`prepare`) without waiting for the answer.

        Args:
            call: the question; sent again, it is the same one, and what was uploaded stays so.
            timeout: seconds until it ends, uploads and all; None: the client's.

        Raises:
            SightlineError: INVALID_ARGUMENT: the timeout is not above 0 and at most 3600 s;
                FAILED_PRECONDITION: the client is closed.
        """
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        pending = PendingAnswer(call, self._transport, seconds)
        if self._sizes is not None:
            sizes = self._sizes
            pending.add_done_callback(lambda: _note_model(sizes, call.model, pending))
        return pending

    def list_models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Return the models that the service has loaded.

        Args:
            timeout: seconds until the call ends; None: the client's.

        Raises:
            SightlineError: the call failed; FAILED_PRECONDITION: the client is closed.
        """
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        try:
            response = self._stub.ListModels(
                inference_service_pb2.ListModelsRequest(),
                timeout=seconds,
                metadata=self._endpoint.metadata,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except ValueError as error:
            raise closed() from error
        return parse_models(response)

    def close(self) -> None:
        """Close the connection; call under way end as CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _note_model(sizes: ModelSizes, hint: ModelHint, pending: PendingAnswer) -> None:
    with suppress(SightlineError):
        answer = pending.result()
        if not answer.idempotent_replayed:  # that may be what an earlier model said
            sizes.answered(hint, ModelHint(answer.model_name, answer.model_version))
