"""The way to one service, and what is known of its uploads."""

import time
from collections.abc import Callable, Mapping

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.call import InferCall
from servicekit.errors import SightlineError

_LONGEST_WITHOUT = 600.0
"""Seconds after which a service that took no upload is asked again for one, at the latest."""
_NO_ROOM = {"UPLOAD_QUOTA_EXCEEDED", "UPLOAD_STORE_FULL", "UPLOAD_STORE_UNAVAILABLE"}


class InferenceTransport:
    """The way to one service, and what is known of its uploads; safe in threads.

    Args:
        endpoint: the service.
        stub: the calls.
        upload_above: bytes of an image from which on it is uploaded; None: never.
        clock: seconds that only grow.
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
        """Return the index of the image to upload next; None: the question can be asked."""
        if self._upload_above is None:
            return None
        if self._no_uploads_until is not None and self._clock() < self._no_uploads_until:
            return None
        return call.next_upload(self._upload_above)

    def refuses_uploads(self, error: SightlineError) -> bool:
        """Return whether the service takes no uploads now, but may well take the image itself.

        A service that has no such call, or says when to come back, is left alone with uploads for
        as long, but for 10 minutes at most.
        """
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            seconds = _LONGEST_WITHOUT
        elif error.reason in _NO_ROOM:
            seconds = min(error.retry_after or 0.0, _LONGEST_WITHOUT)
        else:
            return False
        self._no_uploads_until = self._clock() + seconds
        return True

    def upload(
        self, call: InferCall, index: int, timeout: float
    ) -> "grpc.Future[inference_service_pb2.UploadImageResponse]":
        """Start to upload an image.

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
        """Start to ask; return the call, and the references that it carries, by index.

        Raises:
            SightlineError: as `upload`.
        """
        metadata = (*self._endpoint.metadata, *call.metadata)
        request, references = call.request_to_send()
        try:
            future = self._stub.Infer.future(request, timeout=timeout, metadata=metadata)
        except ValueError as error:
            raise closed() from error
        return future, references


def closed() -> SightlineError:
    """Return the error for a call on a closed channel, which gRPC refuses by a ValueError."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_CLOSED", "the client is closed"
    )
