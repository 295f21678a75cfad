"""A question under way: uploads first where they are wanted, then the question itself."""

import threading
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar, cast

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from edge.channel import Endpoint
from edge.cloud.call import InferCall
from edge.cloud.messages import parse_answer
from edge.cloud.types import InferAnswer
from servicekit.errors import SightlineError, from_rpc_error

_Answered: TypeAlias = inference_service_pb2.InferResponse
_Uploaded: TypeAlias = inference_service_pb2.UploadImageResponse
T = TypeVar("T")
_LOST = {"REFERENCE_UNKNOWN", "REFERENCE_EXPIRED", "REFERENCE_GONE"}
_NO_ROOM = {"UPLOAD_QUOTA_EXCEEDED", "UPLOAD_STORE_FULL", "UPLOAD_STORE_UNAVAILABLE"}
_WITHOUT_SECONDS = 600.0
"""How long a service that has no uploads is not asked again for one."""


class Line:
    """The way to one service, and what is known of its uploads; safe in threads.

    Args:
        endpoint: the service.
        stub: the calls.
        upload_above: bytes of a picture from which on it is uploaded; None: never.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        stub: inference_service_pb2_grpc.InferenceServiceStub,
        upload_above: int | None,
    ) -> None:
        self._endpoint = endpoint
        self._stub = stub
        self._upload_above = upload_above
        self._without_until = 0.0

    def next_upload(self, call: InferCall) -> int | None:
        """Returns the index of the picture to upload next; None: the question can be asked."""
        if self._upload_above is None or time.monotonic() < self._without_until:
            return None
        return call.to_upload(self._upload_above)

    def has_no_uploads(self) -> None:
        """Takes note that the service does not know the call."""
        self._without_until = time.monotonic() + _WITHOUT_SECONDS

    def upload(self, call: InferCall, index: int, timeout: float) -> "grpc.Future[_Uploaded]":
        """Starts to upload a picture."""
        return self._stub.UploadImage.future(
            call.upload(index), timeout=timeout, metadata=self._endpoint.metadata
        )

    def infer(self, call: InferCall, timeout: float) -> "grpc.Future[_Answered]":
        """Starts to ask."""
        metadata = (*self._endpoint.metadata, *call.metadata)
        return self._stub.Infer.future(call.to_send(), timeout=timeout, metadata=metadata)


class PendingAnswer:
    """A question under way.

    Args:
        call: the question.
        line: the way to the service.
        timeout: seconds until it ends, uploads and all.

    Raises:
        SightlineError: FAILED_PRECONDITION: the client is closed; UNAUTHENTICATED: there is no
            credential to send.
    """

    def __init__(self, call: InferCall, line: Line, timeout: float) -> None:
        self._call = call
        self._line = line
        self._ends = time.monotonic() + timeout
        self._timeout = timeout
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._done = threading.Event()
        self._cancelled = False
        self._under_way: grpc.Future[_Answered] | grpc.Future[_Uploaded] | None = None
        self._answer: InferAnswer | None = None
        self._error: SightlineError | None = None
        self._start()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Calls back once `result` no longer blocks, from a thread of gRPC's or at once."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def result(self) -> InferAnswer:
        """Returns the answer, waiting for it until the call's deadline.

        Raises:
            SightlineError: the call failed.
        """
        self._done.wait()
        if self._answer is None:
            raise self._error or AssertionError("done, but with neither answer nor error")
        return self._answer

    def cancel(self) -> None:
        """Ends the call if it has not ended."""
        with self._lock:
            self._cancelled = True
            under_way = self._under_way
        if under_way is not None:
            under_way.cancel()

    def _start(self) -> None:
        """Starts the next call. Raises SightlineError: it cannot be started."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise SightlineError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "DEADLINE_EXCEEDED",
                f"no answer within {self._timeout:.3f} s",
            )
        index = self._line.next_upload(self._call)
        try:
            if index is None:
                asked = self._line.infer(self._call, left)
                self._follow(asked)
                asked.add_done_callback(self._asked)
            else:
                upload = self._line.upload(self._call, index, left)
                self._follow(upload)
                upload.add_done_callback(lambda ended: self._uploaded(index, ended))
        except ValueError as error:  # what gRPC raises on a closed channel
            raise SightlineError(
                grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_CLOSED", "the client is closed"
            ) from error

    def _follow(self, future: "grpc.Future[_Answered] | grpc.Future[_Uploaded]") -> None:
        with self._lock:
            self._under_way = future
            cancelled = self._cancelled
        if cancelled:
            future.cancel()

    def _go_on(self) -> None:
        try:
            self._start()
        except SightlineError as error:
            self._end(error=error)

    def _asked(self, ended: "grpc.Future[_Answered]") -> None:
        try:
            response = _response(ended)
            trailing = cast("grpc.Call", ended).trailing_metadata() or ()
            self._end(answer=parse_answer(response, trailing, self._call))
        except SightlineError as error:
            if error.reason in _LOST and self._call.has_references:
                self._call.lost()
                self._go_on()
            else:
                self._end(error=error)

    def _uploaded(self, index: int, ended: "grpc.Future[_Uploaded]") -> None:
        try:
            response = _response(ended)
        except SightlineError as error:
            if not self._goes_without(error):
                self._end(error=error)
                return
        else:
            self._call.uploaded(index, response.image.reference)
        self._go_on()

    def _goes_without(self, error: SightlineError) -> bool:
        """Whether the service takes no uploads, but may well take the picture itself."""
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            self._line.has_no_uploads()
        elif error.reason not in _NO_ROOM:
            return False
        self._call.no_uploads()
        return True

    def _end(
        self, *, answer: InferAnswer | None = None, error: SightlineError | None = None
    ) -> None:
        with self._lock:
            self._answer, self._error = answer, error
            self._under_way = None
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def _response(ended: "grpc.Future[T]") -> T:
    """The response of a call that has ended. Raises SightlineError: it failed."""
    try:
        return ended.result()
    except grpc.FutureCancelledError:
        raise SightlineError(
            grpc.StatusCode.CANCELLED, "CANCELLED", "the call was cancelled here"
        ) from None
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
