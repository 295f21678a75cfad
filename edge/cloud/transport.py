"""RPCs to one inference service, and the decision whether images are uploaded to it."""

import time
from collections.abc import Callable, Mapping

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.call import InferCall
from servicekit.errors import SightlineError

_MAX_PAUSE_SECONDS = 600.0
"""Maximum time for which no upload is tried after the service has refused one."""
_TOO_LARGE = "SERVER: Received message larger than max"
_UPLOADS_REFUSED = {"UPLOAD_QUOTA_EXCEEDED", "UPLOAD_STORE_FULL", "UPLOAD_STORE_UNAVAILABLE"}


class InferenceTransport:
    """Sender of uploads and requests to one service. Thread-safe.

    Args:
        endpoint: the service.
        stub: the service's RPCs.
        upload_above: images of more bytes are uploaded; None: no image is.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        stub: inference_service_pb2_grpc.InferenceServiceStub,
        upload_above: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._stub = stub
        self._upload_above = upload_above
        self._clock = clock
        self._no_uploads_until: float | None = None

    def next_upload(self, call: InferCall) -> int | None:
        """Return the index of the image to upload next; None: the request can be sent."""
        if self._upload_above is None:
            return None
        if self._no_uploads_until is not None and self._clock() < self._no_uploads_until:
            return None
        return call.next_upload(self._upload_above)

    def refuses_uploads(self, error: SightlineError) -> bool:
        """Return True if the service accepts no uploads now, but may accept the image inline.

        Uploads then pause for the time that the service names, but for 10 minutes at most; for 10
        minutes if the service does not implement uploads.
        """
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            seconds = _MAX_PAUSE_SECONDS
        elif error.reason in _UPLOADS_REFUSED:
            seconds = min(error.retry_after or 0.0, _MAX_PAUSE_SECONDS)
        else:
            return False
        self._no_uploads_until = self._clock() + seconds
        return True

    def explain(self, error: SightlineError) -> SightlineError:
        """Return the error of a request, in words that name a wrong address or a limit."""
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in error.message:
            # gRPC's own refusal. A retry would send the same bytes.
            return SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "IMAGE_TOO_LARGE",
                "the request is larger than the service takes in one message: upload the images"
                f" (upload_above_bytes) or shrink them ({error.message})",
            )
        return self._endpoint.explain(error, "inference", "inference_target")

    def upload(
        self, call: InferCall, index: int, timeout: float
    ) -> "grpc.Future[inference_service_pb2.UploadImageResponse]":
        """Start the upload of an image.

        Raises:
            SightlineError: FAILED_PRECONDITION: the client is closed; UNAUTHENTICATED: there is no
                credential to send.
        """
        metadata = self._endpoint.metadata
        try:
            return self._stub.UploadImage.future(
                call.upload(index), timeout=timeout, metadata=metadata
            )
        except ValueError as error:
            raise closed() from error

    def infer(
        self, call: InferCall, timeout: float
    ) -> "tuple[grpc.Future[inference_service_pb2.InferResponse], Mapping[int, str]]":
        """Start the request; return its future and the references in it, by image index.

        Raises:
            SightlineError: FAILED_PRECONDITION: the client is closed; UNAUTHENTICATED: there is no
                credential to send.
        """
        metadata = (*self._endpoint.metadata, *call.metadata)
        request, references = call.request_to_send()
        try:
            future = self._stub.Infer.future(request, timeout=timeout, metadata=metadata)
        except ValueError as error:
            raise closed() from error
        return future, references


def closed() -> SightlineError:
    """Return the error for a call on a closed channel, for which gRPC raises ValueError."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_CLOSED", "the client is closed"
    )
