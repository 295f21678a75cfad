"""A question under way: uploads first where they are wanted, then the question itself."""

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
    """A question under way.

    Args:
        call: the question.
        transport: the way to the service.
        timeout: seconds until it ends, uploads and all.

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
        """Call back once `result` no longer blocks, from a thread of gRPC's or at once."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def result(self) -> InferAnswer:
        """Return the answer, waiting for it until the call's deadline.

        Raises:
            SightlineError: the call failed.
        """
        self._done.wait()
        if self._answer is not None:
            return self._answer
        if self._error is None:
            raise AssertionError("done, but with neither answer nor error")
        # A copy: the frames of who catches it refer to this object, and must not be kept by it.
        raise copy.copy(self._error)

    def cancel(self) -> None:
        """End the call if it has not ended."""
        with self._lock:
            self._cancelled = True
            active = self._active
        if active is not None:
            active.cancel()

    def _start(self) -> None:
        """Start the next call. Raises SightlineError: it cannot be started."""
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
        """Hear the end of a call; end with the answer or an error, or start the next call."""
        answer: InferAnswer | None = None
        error: SightlineError | None = None
        try:
            answer = handle()
            if answer is None:
                self._start()
                return
        except SightlineError as raised:
            error = without_frames(raised)
        except Exception as raised:  # noqa: BLE001 - or whoever waits would wait for ever
            error = SightlineError(
                grpc.StatusCode.INTERNAL, "ANSWER_UNUSABLE", f"the answer cannot be used: {raised}"
            )
        self._end(answer, error)

    def _handle_response(
        self, references: Mapping[int, str], ended: "grpc.Future[_InferResponse]"
    ) -> InferAnswer | None:
        """The answer; None: images that were referred to are lost. Raises SightlineError."""
        try:
            response = _response(ended)
        except SightlineError as error:
            lost = _lost_in_error(error, references)
            if not lost:
                raise
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
        """Raise SightlineError: the image cannot be delivered."""
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
    """The references, by index, that a question failed for."""
    if error.reason == "IDEMPOTENCY_KEY_REUSED":
        # The service tells questions apart by their images, and does not know the image of a
        # reference that another process has signed: it takes this question for another one.
        return sent
    if error.reason not in _LOST and error.reason != "IMAGES_INVALID":
        return {}
    fields = [_REFERENCE_FIELD.fullmatch(violation.field) for violation in error.violations]
    named = {int(field[1]) for field in fields if field}
    if error.reason in _LOST and not named:
        return sent
    return {index: reference for index, reference in sent.items() if index in named}


def _lost_in_response(response: _InferResponse, sent: Mapping[int, str]) -> Mapping[int, str]:
    """The references, by index, of images that alone were not answered for their sake."""
    errors = {index: result.error.reason for index, result in enumerate(response.results)}
    return {index: ref for index, ref in sent.items() if errors.get(index) in _LOST}


def _for_image(index: int, error: SightlineError) -> SightlineError:
    """The error with the image's name in place of an upload's fields, which no caller knows."""
    field = f"images[{index}]"
    named = copy.copy(error)
    named.message = f"{field}: {error.message}"
    named.violations = tuple(FieldViolation(field, v.description) for v in error.violations)
    return named


def _response(ended: "grpc.Future[T]") -> T:
    """The response of a call that has ended. Raises SightlineError: it failed."""
    try:
        # Not raised: the call is its own error, and would be kept by its own traceback.
        error = ended.exception()
    except grpc.FutureCancelledError:
        raise SightlineError(
            grpc.StatusCode.CANCELLED, "CANCELLED", "the call was cancelled here"
        ) from None
    if error is None:
        return ended.result()
    raise from_rpc_error(cast("grpc.RpcError", error))
