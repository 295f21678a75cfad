"""A fake ingest service on a real socket, with its store in a dict and faults on demand."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2
from sightline.types.v1 import prediction_pb2

from servicekit.errors import SightlineError, to_status

_SERVICE = "sightline.ingest.v1.IngestService"
UNAVAILABLE = SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "going away")
MALFORMED = SightlineError(
    grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "message cannot be read"
)
Request = ingest_service_pb2.PredictionLogRequest


@dataclass
class Stored:
    """The stored state of one spool."""

    committed_through: int = 0
    predictions: dict[int, prediction_pb2.Prediction] = field(default_factory=dict)
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    """First and last sequence, and reason."""
    generations: list[tuple[str, int]] = field(default_factory=list)
    """Runs: their generation, and the sequence after which they begin."""

    def conflict(self, request: Request, generation: str) -> int | None:
        """Return a sequence of the message that another generation or prediction holds, if any."""
        claims = {
            sequence for first, last, _ in _in_order(request) for sequence in range(first, last + 1)
        }
        for sequence in sorted(claims):
            owner = self.owner(sequence)
            if generation and owner and owner != generation:
                return sequence
        used = [name for name, _ in self.generations[:-1]]
        current = self.generations[-1][0] if self.generations else ""
        if (
            generation in used
            and generation != current
            and max(claims, default=0) > (self.committed_through)
        ):
            return self.committed_through + 1
        for prediction in request.predictions:
            known = self.predictions.get(prediction.sequence)
            if prediction.sequence not in (1, self.committed_through):
                continue
            if known not in (None, prediction):
                return prediction.sequence
        return None

    def owner(self, sequence: int) -> str:
        """Return the generation of a committed sequence; empty if unknown or not committed."""
        if sequence > self.committed_through:
            return ""
        return next((name for name, after in self.generations[::-1] if after < sequence), "")

    def check(self) -> None:
        """Fail unless every sequence up to the watermark is stored exactly once."""
        covered = sorted(self.predictions)
        for first, last, _ in self.gaps:
            covered += range(first, last + 1)
        assert sorted(covered) == list(range(1, self.committed_through + 1))


@dataclass
class FakeIngest:
    """A fake ingest service. Each fault applies once, in order.

    Attributes:
        before: errors that end a stream before anything of it is committed.
        after: errors that end a stream after all of it is committed: the answer is lost.
        watermark_errors: errors that GetWatermark answers with.
        unreadable: returns True for predictions that make their message malformed.
        on_message: called with every message before it is committed.
        max_bytes: gRPC's limit for a message; None: gRPC's own.
        keeps_generations: False for an older service, which compares nothing.
    """

    before: deque[SightlineError] = field(default_factory=deque)
    after: deque[SightlineError] = field(default_factory=deque)
    watermark_errors: deque[SightlineError] = field(default_factory=deque)
    unreadable: Callable[[prediction_pb2.Prediction], bool] = lambda _: False
    on_message: Callable[[Request], object] = lambda _: None
    max_bytes: int | None = None
    keeps_generations: bool = True
    conflicts: int = 0
    spools: dict[tuple[str, str], Stored] = field(default_factory=dict)
    headers: list[ingest_pb2.LogHeader] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    """Messages of each stream so far."""
    duplicates: int = 0
    port: int = 0
    _server: grpc.Server | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, on the same port as before."""
        options: list[tuple[str, int]] = [("grpc.so_reuseport", 0)]
        if self.max_bytes is not None:
            options.append(("grpc.max_receive_message_length", self.max_bytes))
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        log = grpc.stream_unary_rpc_method_handler(
            self._log,
            request_deserializer=None,
            response_serializer=ingest_service_pb2.PredictionLogResponse.SerializeToString,
        )
        ask = grpc.unary_unary_rpc_method_handler(
            self._watermark,
            request_deserializer=ingest_service_pb2.GetWatermarkRequest.FromString,
            response_serializer=ingest_service_pb2.GetWatermarkResponse.SerializeToString,
        )
        handlers = {"PredictionLog": log, "GetWatermark": ask}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def die(self) -> None:
        """Cut off every call, without an answer. From within a call too; `stop` must follow."""
        assert self._server is not None
        self._server.stop(None)

    def stop(self) -> None:
        """Stop the server at once, with calls in flight."""
        if self._server is not None:
            self._server.stop(None).wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def only(self) -> Stored:
        """Return the only spool that has sent anything."""
        assert len(self.spools) == 1, self.spools.keys()
        return next(iter(self.spools.values()))

    def images(self) -> list[str]:
        """Return the image ids of all stored predictions, by spool and sequence."""
        return [
            stored.predictions[sequence].image_id
            for stored in self.spools.values()
            for sequence in sorted(stored.predictions)
        ]

    def _log(
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> ingest_service_pb2.PredictionLogResponse:
        answer = ingest_service_pb2.PredictionLogResponse()
        stored: Stored | None = None
        with self._lock:
            self.streams.append(0)
            self.metadata.append(dict(context.invocation_metadata()))
        if self.before:
            _abort(context, self.before.popleft())
        for raw in messages:
            with self._lock:
                self.streams[-1] += 1
                request = self._read(raw, context)
                self.on_message(request)
                if stored is None:
                    self.headers.append(request.header)
                    key = (request.header.device_id, request.header.spool_id)
                    stored = self.spools.setdefault(key, Stored())
                    generation = request.header.generation
                if self.keeps_generations:
                    self._compare(request, stored, generation, context)
                before = stored.committed_through
                try:
                    self._commit(request, stored, answer, context)
                finally:
                    current = stored.generations[-1][0] if stored.generations else None
                    if stored.committed_through > before and generation != current:
                        stored.generations.append((generation, before))
                answer.committed_through = stored.committed_through
                answer.generation = generation if self.keeps_generations else ""
        if self.after:
            _abort(context, self.after.popleft())
        return answer

    def _read(self, raw: bytes, context: grpc.ServicerContext) -> Request:
        try:
            request = Request.FromString(raw)
        except DecodeError:
            _abort(context, MALFORMED)
        if any(map(self.unreadable, request.predictions)):
            _abort(context, MALFORMED)
        return request

    def _compare(
        self, request: Request, stored: Stored, generation: str, context: grpc.ServicerContext
    ) -> None:
        sequence = stored.conflict(request, generation)
        if sequence is not None:
            self.conflicts += 1
            _abort(context, conflict(sequence))

    def _commit(
        self,
        request: Request,
        stored: Stored,
        answer: ingest_service_pb2.PredictionLogResponse,
        context: grpc.ServicerContext,
    ) -> None:
        for first, last, entry in _in_order(request):
            if last <= stored.committed_through:
                answer.duplicates += isinstance(entry, prediction_pb2.Prediction)
                self.duplicates += isinstance(entry, prediction_pb2.Prediction)
                continue
            expected = stored.committed_through + 1
            if first > expected:
                _abort(context, hole(expected))
            if isinstance(entry, prediction_pb2.Prediction):
                stored.predictions[last] = entry
                answer.accepted += 1
            else:
                stored.gaps.append((max(first, expected), last, entry.reason))
            stored.committed_through = last

    def _watermark(
        self, request: ingest_service_pb2.GetWatermarkRequest, context: grpc.ServicerContext
    ) -> ingest_service_pb2.GetWatermarkResponse:
        if self.watermark_errors:
            _abort(context, self.watermark_errors.popleft())
        with self._lock:
            stored = self.spools.get((request.device_id, request.spool_id), Stored())
            runs = stored.generations if self.keeps_generations else []
            return ingest_service_pb2.GetWatermarkResponse(
                committed_through=stored.committed_through,
                generations=[
                    ingest_pb2.Generation(id=name, after_sequence=after) for name, after in runs
                ],
            )


def conflict(sequence: int) -> SightlineError:
    """Return the error for a stream with other content than was committed."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SEQUENCE_CONFLICT",
        f"sequence {sequence} was committed with another content",
        metadata={"sequence": str(sequence)},
    )


def hole(expected: int) -> SightlineError:
    """Return the error for a stream that leaves a sequence out."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SEQUENCE_HOLE",
        f"sequence {expected} is missing",
        metadata={"expected_sequence": str(expected)},
    )


def _in_order(request: Request) -> Sequence[tuple[int, int, Any]]:
    entries: list[tuple[int, int, Any]] = [(p.sequence, p.sequence, p) for p in request.predictions]
    entries += [(gap.first_sequence, gap.last_sequence, gap) for gap in request.gaps]
    return sorted(entries, key=lambda entry: entry[0])


def _abort(context: grpc.ServicerContext, error: SightlineError) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort returns never")
