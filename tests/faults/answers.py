"""A gRPC relay that loses answers: a stream is committed, and its acknowledgement is lost."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import grpc
from sightline.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc

if TYPE_CHECKING:
    from grpc import CallFuture

_SERVICE = "sightline.ingest.v1.IngestService"
_SECONDS = 60.0
Stream = Sequence[bytes]


class Answers:
    """A relay of calls to an ingest service that applies `fault` to each stream.

    Args:
        target: address of the service.

    Attributes:
        fault: called with the relay and the messages of a stream; returns the answer, or raises
            `grpc.RpcError` or `LostError`.
        target: address of the relay, for nodes.
    """

    def __init__(self, target: str) -> None:
        self.fault: Callable[[Answers, Stream], bytes] = Answers.pass_on
        self._channel = grpc.insecure_channel(target, [("grpc.max_reconnect_backoff_ms", 200)])
        self._log = self._channel.stream_unary(f"/{_SERVICE}/PredictionLog", None, None)
        self._ask = self._channel.unary_unary(f"/{_SERVICE}/GetWatermark", None, None)
        self._server = grpc.server(ThreadPoolExecutor(8))
        handlers = {
            "PredictionLog": grpc.stream_unary_rpc_method_handler(self._on_log),
            "GetWatermark": grpc.unary_unary_rpc_method_handler(self._on_ask),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def pass_on(self, stream: Stream) -> bytes:
        """Forward the whole stream, and return its answer."""
        answer: bytes = self._log(iter(stream), timeout=_SECONDS)
        return answer

    def commit(self, stream: Stream) -> "CallFuture[bytes]":
        """Forward the stream without its end, so that all is committed and nothing is answered.

        Returns:
            The call, which is still open. It may have failed before all was committed.
        """
        over = threading.Event()

        def messages() -> Iterator[bytes]:
            yield from stream
            over.wait(_SECONDS)

        call = self._log.future(messages(), timeout=_SECONDS)
        call.add_done_callback(lambda _: over.set())
        while not call.done() and self._watermark(stream) < _last(stream):
            time.sleep(0.001)
        return call

    def _watermark(self, stream: Stream) -> int:
        header = ingest_service_pb2.PredictionLogRequest.FromString(stream[0]).header
        request = ingest_service_pb2.GetWatermarkRequest(
            device_id=header.device_id, spool_id=header.spool_id
        )
        stub = ingest_service_pb2_grpc.IngestServiceStub(self._channel)
        return stub.GetWatermark(request, timeout=_SECONDS).committed_through

    def _on_log(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        stream = list(requests)
        try:
            return self.fault(self, stream)
        except (grpc.RpcError, LostError) as error:
            _fail(context, error)

    def _on_ask(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            answer: bytes = self._ask(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            _fail(context, error)
        return answer


class LostError(Exception):
    """The connection is broken."""


def _fail(context: grpc.ServicerContext, error: Any) -> NoReturn:
    context.abort(grpc.StatusCode.UNAVAILABLE, f"connection lost: {type(error).__name__}")
    raise AssertionError("abort returns never")


def _last(stream: Stream) -> int:
    """Return the last sequence of a stream; 0 if it has none."""
    last = 0
    for message in stream:
        request = ingest_service_pb2.PredictionLogRequest.FromString(message)
        last = max(last, *(prediction.sequence for prediction in request.predictions), last)
        last = max(last, *(gap.last_sequence for gap in request.gaps), last)
    return last
