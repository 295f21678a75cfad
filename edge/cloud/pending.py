"""One call to the inference service in progress: first its uploads, then the request itself."""

import copy
import functools
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar, cast

import grpc
from sightline.inference.v1 import inference_service_pb2

from edge.cloud.call import InferCall
from edge.cloud.messages import parse_answer
from edge.cloud.transport import InferenceTransport
from edge.cloud.types import InferAnswer
from servicekit.errors import FieldViolation, SightlineError, from_rpc_error, without_frames

_InferResponse: TypeAlias = inference_service_pb2.InferResponse
_UploadResponse: TypeAlias = inference_service_pb2.UploadImageResponse
T = TypeVar("T")
_LOST = {"REFERENCE_UNKNOWN", "REFERENCE_EXPIRED", "REFERENCE_GONE"}
_REFERENCE_FIELD = re.compile(r"images\[(\d+)\]\.reference")


class PendingAnswer:
    """The future answer to a request that was sent. Thread-safe.

    Args:
        call: the request.
        transport: sends the uploads and the request.
        timeout: seconds until the call ends, uploads included.

    Raises:
        SightlineError: FAILED_PRECONDITION: the client is closed; UNAUTHENTICATED: there is no
            credential to send.
    """

    def __init__(self, call: InferCall, transport: InferenceTransport, timeout: float) -> None:
        self._call = call
        self._transport = transport
        self._ends = time.monotonic() + timeout
        self._timeout = timeout
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._done = threading.Event()
        self._cancelled = False
        self._active: grpc.Future[_InferResponse] | grpc.Future[_UploadResponse] | None = None
        self._answer: InferAnswer | None = None
        self._error: SightlineError | None = None
        self._start()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call back once `result` no longer blocks, from a gRPC thread or immediately."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def result(self) -> InferAnswer:
        """Wait for the answer until the call's deadline, and return it.

        Raises:
            SightlineError: the call failed.
        """
        self._done.wait()
        if self._answer is not None:
            return self._answer
        if self._error is None:
            raise AssertionError("the call has ended without an answer and without an error")
        # Raise a copy: a traceback refers to the caller's frames, which refer to this object. Kept
        # here, it would form a reference cycle that holds the images in memory.
        raise copy.copy(self._error)

    def cancel(self) -> None:
        """End the call if it has not ended."""
        with self._lock:
            self._cancelled = True
            active = self._active
        if active is not None:
            active.cancel()

    def _start(self) -> None:
        """Start the next upload or the request; raise SightlineError if it cannot be started."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise SightlineError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "DEADLINE_EXCEEDED",
                f"no answer within {self._timeout:.3f} s",
            )
        index = self._transport.next_upload(self._call)
        if index is None:
            future, references = self._transport.infer(self._call, left)
            self._set_active(future)
            future.add_done_callback(
                lambda ended: self._continue(
                    functools.partial(self._handle_response, references, ended)
                )
            )
        else:
            upload = self._transport.upload(self._call, index, left)
            self._set_active(upload)
            upload.add_done_callback(
                lambda ended: self._continue(functools.partial(self._handle_upload, index, ended))
            )

    def _set_active(
        self, future: "grpc.Future[_InferResponse] | grpc.Future[_UploadResponse]"
    ) -> None:
        with self._lock:
            self._active = future
            cancelled = self._cancelled
        if cancelled:
            future.cancel()

    def _continue(self, handle: Callable[[], InferAnswer | None]) -> None:
        """Handle the end of an RPC: finish with the answer or an error, or start the next RPC."""
        answer: InferAnswer | None = None
        error: SightlineError | None = None
        try:
            answer = handle()
            if answer is None:
                self._start()
                return
        except SightlineError as raised:
            error = without_frames(raised)
        except Exception as raised:  # noqa: BLE001 - else the caller of `result` waits for ever
            error = SightlineError(
                grpc.StatusCode.INTERNAL, "ANSWER_UNUSABLE", f"the answer cannot be used: {raised}"
            )
        self._end(answer, error)

    def _handle_response(
        self, references: Mapping[int, str], ended: "grpc.Future[_InferResponse]"
    ) -> InferAnswer | None:
        """Return the answer; None: the service lost referenced images, which are sent again.

        Raises:
            SightlineError: the call failed for another reason.
        """
        try:
            response = _response(ended)
        except SightlineError as error:
            lost = _lost_in_error(error, references)
            if not lost:
                raise self._transport.explain(error) from None
            if error.reason not in _LOST:
                self._call.stop_uploads()
        else:
            lost = _lost_in_response(response, references)
            if not lost:
                trailing = cast("grpc.Call", ended).trailing_metadata() or ()
                return parse_answer(response, trailing, self._call)
        self._call.lost(lost)
        return None

    def _handle_upload(self, index: int, ended: "grpc.Future[_UploadResponse]") -> None:
        """Store the reference of an uploaded image; raise SightlineError if the upload failed."""
        try:
            self._call.uploaded(index, _response(ended).image.reference)
        except SightlineError as error:
            if not self._transport.refuses_uploads(error):
                raise _for_image(index, error) from error
            self._call.stop_uploads()

    def _end(self, answer: InferAnswer | None, error: SightlineError | None) -> None:
        with self._lock:
            if self._done.is_set():
                return
            self._answer, self._error = answer, error
            self._active = None
            self._done.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def _lost_in_error(error: SightlineError, sent: Mapping[int, str]) -> Mapping[int, str]:
    """Return the references, by index, that made a request fail."""
    if error.reason == "IDEMPOTENCY_KEY_REUSED":
        # The service compares requests by their images. It cannot resolve a reference that another
        # process has signed, and then takes this request for a different one.
        return sent
    if error.reason not in _LOST and error.reason != "IMAGES_INVALID":
        return {}
    fields = [_REFERENCE_FIELD.fullmatch(violation.field) for violation in error.violations]
    named = {int(field[1]) for field in fields if field}
    if error.reason in _LOST and not named:
        return sent
    return {index: reference for index, reference in sent.items() if index in named}


def _lost_in_response(response: _InferResponse, sent: Mapping[int, str]) -> Mapping[int, str]:
    """Return the references, by index, of images whose result is a lost reference."""
    errors = {index: result.error.reason for index, result in enumerate(response.results)}
    return {index: ref for index, ref in sent.items() if errors.get(index) in _LOST}


def _for_image(index: int, error: SightlineError) -> SightlineError:
    """Return the error with the image's field in place of the fields of the upload."""
    field = f"images[{index}]"
    named = copy.copy(error)
    named.message = f"{field}: {error.message}"
    named.violations = tuple(FieldViolation(field, v.description) for v in error.violations)
    return named


def _response(ended: "grpc.Future[T]") -> T:
    """Return the response of an RPC that has ended; raise SightlineError if it failed."""
    try:
        # `result` would raise the call object itself, whose traceback would keep it alive.
        error = ended.exception()
    except grpc.FutureCancelledError:
        raise SightlineError(
            grpc.StatusCode.CANCELLED, "CANCELLED", "the call was cancelled here"
        ) from None
    if error is None:
        return ended.result()
    raise from_rpc_error(cast("grpc.RpcError", error))
