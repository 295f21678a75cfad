"""The gRPC handlers of IngestService."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import grpc
from sightline.ingest.v1 import ingest_service_pb2 as messages

from ingest_service.backup import Backups
from ingest_service.read.handlers import unary
from ingest_service.read.paging import decode_token, encode_token, fill_page, page_size
from ingest_service.read.queries import Queries
from ingest_service.read.visible import visible
from ingest_service.receive.group_commit import GroupCommitter, LogStream, draining_error
from ingest_service.receive.headers import parse_header, parse_spool
from ingest_service.store.protocol import Filter, Position, Reader
from ingest_service.translate import (
    backup_response,
    filter_from_proto,
    log_response,
    stats_response,
    stored_to_proto,
    watermark_response,
)
from servicekit.auth.caller import Scope, current_caller
from servicekit.calls.memory_budget import keep_message
from servicekit.errors import SightlineError, invalid
from servicekit.lifecycle import Service, add_methods

_Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = messages.DESCRIPTOR.services_by_name["IngestService"].full_name
_ACCESS = {
    "PredictionLog": Scope.LOG,
    "GetWatermark": Scope.LOG,
    "GetStats": Scope.READ,
    "ListPredictions": Scope.READ,
    "Backup": Scope.ADMIN,
}
MAX_PAGE_BYTES = 3_700_000
"""Maximum size of a page, bytes. gRPC clients refuse messages above 4 MiB by default, whatever the
server sends. A single prediction that is larger, as one with thousands of masks may be where
max_message_bytes was raised, is alone in its page."""


class ReadHandlers(Protocol):
    """Handlers of methods that read."""

    ACCESS: Mapping[str, Scope]
    """Required scopes by method."""
    UNLIMITED: Sequence[str]
    """Methods whose calls get no default deadline."""

    def handlers(self) -> "Mapping[str, grpc.RpcMethodHandler[Any, Any]]":
        """Return the gRPC handlers by the method's short name."""
        ...


class IngestServer:
    """The handlers of IngestService. Used from one event loop.

    Args:
        committer: commits the messages of streams.
        positions: runs the position queries of reconnecting nodes, which must not wait behind
            statistics.
        queries: runs all other queries.
        backups: creates backups.
        reads: handlers of further methods.
        now: the server's wall clock, UTC.
        max_message_bytes: maximum size of a message of a stream, bytes; a page of more than one
            prediction is smaller.
    """

    def __init__(
        self,
        committer: GroupCommitter[Any],
        positions: Queries,
        queries: Queries,
        backups: Backups,
        reads: Sequence[ReadHandlers] = (),
        *,
        now: Callable[[], datetime],
        max_message_bytes: int,
    ) -> None:
        self._committer = committer
        self._positions = positions
        self._queries = queries
        self._backups = backups
        self._reads = reads
        self._now = now
        self._max_message_bytes = max_message_bytes
        self._page_bytes = page_bytes(max_message_bytes)
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def service(self) -> Service:
        """Return the service to register at a server."""
        streams = ("PredictionLog",)
        access = {
            **_ACCESS,
            **{m: scope for reads in self._reads for m, scope in reads.ACCESS.items()},
        }
        unlimited = (*streams, *(m for reads in self._reads for m in reads.UNLIMITED))
        return Service(SERVICE_NAME, self._register, access, large=streams, unlimited=unlimited)

    def cut_streams(self) -> None:
        """End every open stream with UNAVAILABLE, once its messages are committed."""
        if not self._cut.done():
            self._cut.set_result(None)

    async def prediction_log(
        self, requests: AsyncIterator[bytes], _context: _Context
    ) -> messages.PredictionLogResponse:
        """Return the totals of a stream at half-close, after the COMMIT of all its messages.

        An error that ends a stream early has `committed_through` in its metadata, unless a message
        of the stream has failed.
        """
        first = await anext(requests, None)
        if first is None:
            raise invalid("header", "must be given in the first message of a stream")
        self._check_size(first)
        opening = parse_header(first, self._now(), time.monotonic())
        current_caller().require_device(opening.spool.device_id)
        stream = self._committer.open(opening)
        stream.send(first, keep_message())
        del first  # it may be large, and the stream may be long
        try:
            await self._receive(stream, requests)
        except SightlineError as error:
            totals = await stream.finish()
            error.metadata["committed_through"] = str(totals.committed_through)
            raise
        return log_response(await stream.finish(), opening.generation)

    async def get_watermark(
        self, request: messages.GetWatermarkRequest, _context: _Context
    ) -> messages.GetWatermarkResponse:
        """Return the committed position of a spool."""
        spool = parse_spool(request.device_id, request.spool_id)
        current_caller().require_device(spool.device_id)
        watermark = await self._positions.run(lambda reader: reader.watermark(spool))
        return watermark_response(watermark)

    async def get_stats(
        self, request: messages.GetStatsRequest, _context: _Context
    ) -> messages.GetStatsResponse:
        """Return statistics of the stored predictions."""
        wanted = visible(filter_from_proto(request.filter), current_caller())
        details = request.details
        return stats_response(
            await self._queries.run(lambda reader: reader.stats(wanted, details=details))
        )

    async def list_predictions(
        self, request: messages.ListPredictionsRequest, _context: _Context
    ) -> messages.ListPredictionsResponse:
        """Return a page of stored predictions, newest commit first."""
        wanted = visible(filter_from_proto(request.filter), current_caller())
        size = page_size(request.page_size)
        after = decode_token(request.page_token, wanted) if request.page_token else None
        page, last = await self._queries.run(
            lambda reader: read_page(reader, wanted, size, after, self._page_bytes)
        )
        if last is not None:
            page.next_page_token = encode_token(last, wanted)
        return page

    async def backup(
        self, _request: messages.BackupRequest, _context: _Context
    ) -> AsyncIterator[messages.BackupResponse]:
        """Stream a copy of the database."""
        current_caller().require_all_devices()
        async with contextlib.aclosing(self._backups.run()) as parts:
            async for part in parts:
                yield backup_response(part)

    def _register(self, server: grpc.aio.Server) -> None:
        handlers = {
            # The bytes of a message are decoded later, together with those of its group.
            "PredictionLog": grpc.stream_unary_rpc_method_handler(
                self.prediction_log,
                request_deserializer=None,
                response_serializer=messages.PredictionLogResponse.SerializeToString,
            ),
            "GetWatermark": unary(self.get_watermark, messages.GetWatermarkRequest),
            "GetStats": unary(self.get_stats, messages.GetStatsRequest),
            "ListPredictions": unary(self.list_predictions, messages.ListPredictionsRequest),
            "Backup": grpc.unary_stream_rpc_method_handler(
                self.backup,
                request_deserializer=messages.BackupRequest.FromString,
                response_serializer=messages.BackupResponse.SerializeToString,
            ),
        }
        for reads in self._reads:
            handlers |= reads.handlers()
        add_methods(server, SERVICE_NAME, handlers)

    async def _receive(self, stream: LogStream, requests: AsyncIterator[bytes]) -> None:
        """Pass on the messages of a stream, until half-close or until one has failed."""
        receiving = asyncio.ensure_future(self._send_all(stream, requests))
        ends: set[asyncio.Future[None]] = {receiving, stream.ended, self._cut}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()
            elif self._cut.done() and not stream.failed:
                raise draining_error()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _send_all(self, stream: LogStream, requests: AsyncIterator[bytes]) -> None:
        async for payload in requests:
            self._check_size(payload)
            stream.send(payload, keep_message())
            del payload  # or it would be kept in memory while waiting for the next one

    def _check_size(self, payload: bytes) -> None:
        if len(payload) > self._max_message_bytes:
            raise SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MESSAGE_TOO_LARGE",
                f"the message must be at most {self._max_message_bytes} bytes, got {len(payload)}",
            )


def page_bytes(max_message_bytes: int) -> int:
    """Return the maximum size of a page of more than one prediction, bytes."""
    return min(MAX_PAGE_BYTES, int(max_message_bytes * 0.9))


def read_page(
    reader: Reader, filter_: Filter, size: int, after: Position | None, limit: int
) -> tuple[messages.ListPredictionsResponse, Position | None]:
    """Return a page, and the position of its last prediction if another page follows.

    Args:
        reader: reads from one snapshot.
        filter_: the predictions to list.
        size: maximum number of predictions, >= 1.
        after: position of the last prediction of the page before; None: the first page.
        limit: maximum size of a page of more than one prediction, bytes.
    """
    page = messages.ListPredictionsResponse()
    last = fill_page(
        page.predictions,
        lambda count, start: reader.page(filter_, count, start),
        lambda row: (stored_to_proto(row), row.position),
        size,
        after,
        limit,
    )
    return page, last
