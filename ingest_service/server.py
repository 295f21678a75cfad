"""IngestService on gRPC: translates between the contract and the service's parts."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.message import Message
from sightline.ingest.v1 import ingest_service_pb2 as messages

from ingest_service.backup import Backups
from ingest_service.read.paging import decode_token, encode_token
from ingest_service.read.queries import Queries
from ingest_service.read.visible import visible
from ingest_service.receive.group_commit import GroupCommitter, LogStream, draining_error
from ingest_service.receive.headers import parse_header, parse_spool
from ingest_service.store.protocol import StoredPrediction
from ingest_service.translate import (
    backup_response,
    filter_from_proto,
    log_response,
    stats_response,
    stored_to_proto,
    watermark_response,
)
from servicekit.auth.caller import Scope, current_caller
from servicekit.calls.in_flight import keep_message
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
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100


class IngestServer:
    """The handlers of IngestService. Belongs to one event loop.

    Args:
        committer: takes the messages of streams.
        positions: runs what nodes ask when they reconnect, and must not wait behind statistics.
        queries: runs what is read besides.
        backups: makes backups.
        now: the server's wall clock, UTC.
        max_message_bytes: largest message of a stream, and about the largest page, bytes.
    """

    def __init__(
        self,
        committer: GroupCommitter[Any],
        positions: Queries,
        queries: Queries,
        backups: Backups,
        *,
        now: Callable[[], datetime],
        max_message_bytes: int,
    ) -> None:
        self._committer = committer
        self._positions = positions
        self._queries = queries
        self._backups = backups
        self._now = now
        self._max_message_bytes = max_message_bytes
        self._cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def service(self) -> Service:
        """Return the service for a server to offer."""
        return Service(SERVICE_NAME, self._register, _ACCESS, large=("PredictionLog",))

    def cut_streams(self) -> None:
        """End every open stream with UNAVAILABLE, once what it has sent is committed."""
        if not self._cut.done():
            self._cut.set_result(None)

    async def prediction_log(
        self, requests: AsyncIterator[bytes], _context: _Context
    ) -> messages.PredictionLogResponse:
        """Answer at half-close, after the COMMIT of all that was sent.

        What ends a stream early says in `committed_through` how far it is committed; that is left
        out where a message of the stream has failed.
        """
        first = await anext(requests, None)
        if first is None:
            raise invalid("header", "must be given in the first message of a stream")
        self._check_size(first)
        opening = parse_header(first, self._now(), time.monotonic())
        current_caller().require_device(opening.spool.device_id)
        stream = self._committer.open(opening)
        stream.send(first, keep_message())
        del first  # it may be large, and the stream may last
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
        """Say up to where a spool is committed."""
        spool = parse_spool(request.device_id, request.spool_id)
        current_caller().require_device(spool.device_id)
        mark = await self._positions.run(lambda reader: reader.watermark(spool))
        return watermark_response(mark)

    async def get_stats(
        self, request: messages.GetStatsRequest, _context: _Context
    ) -> messages.GetStatsResponse:
        """Count what is stored."""
        which = visible(filter_from_proto(request.filter), current_caller())
        return stats_response(await self._queries.run(lambda reader: reader.stats(which)))

    async def list_predictions(
        self, request: messages.ListPredictionsRequest, _context: _Context
    ) -> messages.ListPredictionsResponse:
        """List a page of what is stored, newest commit first."""
        which = visible(filter_from_proto(request.filter), current_caller())
        size = _page_size(request.page_size)
        after = decode_token(request.page_token, which) if request.page_token else None
        # One more than asked for tells whether a page follows.
        found = await self._queries.run(lambda reader: reader.page(which, size + 1, after))
        response = messages.ListPredictionsResponse()
        taken = _fill(response, found[:size], self._max_message_bytes)
        if taken < len(found):
            response.next_page_token = encode_token(found[taken - 1].position, which)
        return response

    async def backup(
        self, _request: messages.BackupRequest, _context: _Context
    ) -> AsyncIterator[messages.BackupResponse]:
        """Send a copy of the database."""
        current_caller().require_all_devices()
        async with contextlib.aclosing(self._backups.run()) as parts:
            async for part in parts:
                yield backup_response(part)

    def _register(self, server: grpc.aio.Server) -> None:
        handlers = {
            # The bytes of a message go to native code as they are.
            "PredictionLog": grpc.stream_unary_rpc_method_handler(
                self.prediction_log,
                request_deserializer=None,
                response_serializer=messages.PredictionLogResponse.SerializeToString,
            ),
            "GetWatermark": _unary(self.get_watermark, messages.GetWatermarkRequest),
            "GetStats": _unary(self.get_stats, messages.GetStatsRequest),
            "ListPredictions": _unary(self.list_predictions, messages.ListPredictionsRequest),
            "Backup": grpc.unary_stream_rpc_method_handler(
                self.backup,
                request_deserializer=messages.BackupRequest.FromString,
                response_serializer=messages.BackupResponse.SerializeToString,
            ),
        }
        add_methods(server, SERVICE_NAME, handlers)

    async def _receive(self, stream: LogStream, requests: AsyncIterator[bytes]) -> None:
        """Send on what comes, until half-close or until a message has failed."""
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
            del payload  # or it would be held while the next one is waited for

    def _check_size(self, payload: bytes) -> None:
        if len(payload) > self._max_message_bytes:
            raise SightlineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "MESSAGE_TOO_LARGE",
                f"the message must be at most {self._max_message_bytes} bytes (got {len(payload)})",
            )


def _unary(
    handler: Callable[..., Any], request: type[Message]
) -> "grpc.RpcMethodHandler[Any, Any]":
    return grpc.unary_unary_rpc_method_handler(
        handler,
        request_deserializer=request.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _page_size(asked: int) -> int:
    if not 0 <= asked <= MAX_PAGE_SIZE:
        raise invalid("page_size", f"must be 0 (for {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}")
    return asked or DEFAULT_PAGE_SIZE


def _fill(
    response: messages.ListPredictionsResponse, found: Sequence[StoredPrediction], limit: int
) -> int:
    """Add predictions while the page stays well below the limit, bytes; return how many."""
    size = 0
    for taken, stored in enumerate(found):
        prediction = stored_to_proto(stored)
        size += prediction.ByteSize() + 8
        if taken and size > limit * 0.9:
            return taken
        response.predictions.append(prediction)
    return len(found)
