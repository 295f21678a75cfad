"""The client of the inference service for threads. It makes one try per call.

`edge.decide.coordinator` retries, and falls back when the service does not answer.
`edge.cloud.aio_client` has the client for asyncio.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Self

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.call import InferCall
from edge.cloud.messages import Fitting, check_timeout, parse_models, prepare
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
from edge.detect.limits import DEVICE_LIMITS, DeviceImageLimits
from servicekit.errors import SightlineError, from_rpc_error, invalid
from servicekit.standard_streams import open_closed

HARD_TIMEOUT = 8.0
"""Default timeout of a call, s."""

_OPTIONS = (
    # gRPC must have tried to reconnect before a retry, well inside the request's budget.
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Detect within 15 s that a router has dropped an idle connection: each request on it would use
    # up its whole budget. A ping waits behind up to 64 KiB of queued data, which take 5 s at
    # 13 kB/s; on a slower link no image arrives in time anyway.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class InferenceClient:
    """A client of the inference service. Thread-safe: any number of threads may share it.

    Args:
        endpoint: the service, or its target without TLS, such as `127.0.0.1:50052`.
        timeout: default timeout of a call in seconds, above 0 and at most 3600.
        array_format: encoding of images that are passed as pixels: "jpeg" (quality 95) or "png".
        upload_above_bytes: encoded images of more bytes are uploaded once and sent as references,
            so that a retry does not send them again; >= 0. None: no image is uploaded.
        downscale: shrink images that are larger than the input of the cloud's detector to that
            size (as JPEG of quality 95). Boxes are in pixels of the original image. The client
            fetches the input sizes during its first request; until then, and for classifiers,
            images are sent in full size, but for those that the service refuses by default (10 MiB,
            50 million pixels, 16 384 pixels a side), which are made to fit 4096 x 4096 pixels.
        limits: limits on the images that the client reads; None: the defaults.

    Raises:
        SightlineError: INVALID_ARGUMENT: an argument is out of range.
        ModuleNotFoundError: `downscale` needs numpy and Pillow, which are not installed (extra
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
        limits: DeviceImageLimits | None = None,
    ) -> None:
        open_closed()
        self._endpoint = Endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._timeout = check_timeout(timeout)
        if upload_above_bytes is not None and upload_above_bytes < 0:
            raise invalid("upload_above_bytes", f"must be >= 0 or None, got {upload_above_bytes}")
        if downscale:
            import_module("vision")  # a missing package must raise here, not at the first image
        self._array_format = array_format
        self._limits = limits or DEVICE_LIMITS
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
        context: Mapping[str, str] | None = None,
    ) -> InferAnswer:
        """Return the service's answer for one or more images.

        Args:
            images: a list of images, each RGB uint8 `[H, W, 3]`, encoded bytes, a path or a Pillow
                image. JPEG, PNG, WebP and BMP are sent unchanged. Pixels are encoded first, and so
                are files of other formats that the client can decode, such as TIFF.
            image_ids: a name for each image, returned with its result; empty: no names.
            model: the model to use; None: the server's default.
            parameters: thresholds and limits; None: those of the model.
            timeout: seconds until the call ends; None: the client's timeout.
            idempotency_key: a UUIDv4 that identifies this request: the service answers a repeated
                request with the stored answer. None: a new key.
            traceparent: W3C traceparent to pass on; empty: none.
            context: labels by which the request can be found again in the service's access log and
                traces: at most 16; keys 1 to 64 bytes, values at most 256 bytes. None: no labels.

        Raises:
            SightlineError: an argument is invalid (INVALID_ARGUMENT; nothing was sent), or the
                call failed. If a single image is invalid, the error is in its result.
        """
        call = self.prepare(
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            context=context,
        )
        pending = self.send(call, timeout=timeout)
        try:
            return pending.result()
        finally:
            pending.cancel()  # has an effect only if the wait was interrupted

    def prepare(
        self,
        images: Sequence[Image],
        *,
        image_ids: Sequence[str] = (),
        model: ModelHint | None = None,
        parameters: InferParameters | None = None,
        idempotency_key: str | None = None,
        traceparent: str = "",
        context: Mapping[str, str] | None = None,
    ) -> InferCall:
        """Return a checked request for `send`, which may be sent several times; see `infer`.

        Raises:
            SightlineError: INVALID_ARGUMENT, naming the field and its bound.
        """
        # With a key of the caller's, every try must send the same bytes: never downscale then.
        fitting = None
        if self._sizes is not None and idempotency_key is None:
            fitting = Fitting(self._sizes.of(model or ModelHint()))
        return prepare(
            images,
            image_ids=image_ids,
            model=model,
            parameters=parameters,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            context=context,
            array_format=self._array_format,
            fitting=fitting,
            limits=self._limits,
        )

    def send(self, call: InferCall, *, timeout: float | None = None) -> PendingAnswer:
        """Send a prepared request without waiting for the answer.

        Args:
            call: the request. Sending it again repeats the same request with the same key, and
                does not upload its images again.
            timeout: seconds until the call ends, uploads included; None: the client's timeout.

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
            timeout: seconds until the call ends; None: the client's timeout.

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
            raise self._transport.explain(from_rpc_error(error)) from error
        except ValueError as error:
            raise closed() from error
        return parse_models(response)

    def close(self) -> None:
        """Close the connection. Calls in progress end as CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _note_model(sizes: ModelSizes, hint: ModelHint, pending: PendingAnswer) -> None:
    with suppress(SightlineError):
        answer = pending.result()
        if not answer.idempotent_replayed:  # a replayed answer may be of an earlier model
            sizes.answered(hint, ModelHint(answer.model_name, answer.model_version))
