"""Handlers of the reads of devices, the ledger, gaps, rejections and single sequences."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from sightline.ingest.v1 import reads_pb2

from ingest_service.read.handlers import unary
from ingest_service.read.paging import decode_token, encode_token, fill_page, page_size
from ingest_service.read.queries import Queries
from ingest_service.read.record_messages import (
    device_message,
    gap_message,
    ledger_message,
    rejection_message,
)
from ingest_service.read.visible import visible_devices
from ingest_service.receive.headers import parse_spool
from ingest_service.store.gap_reasons import gap_reason_name
from ingest_service.store.protocol import Filter, Position, Reader, SpoolKey
from ingest_service.store.record_types import (
    Absence,
    FleetQuery,
    GapRecord,
    LossFilter,
    RejectedRecord,
)
from ingest_service.translate import stored_to_proto, values_of
from servicekit.auth.caller import Scope, current_caller
from servicekit.errors import SightlineError, invalid

_Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_WINDOW = timedelta(minutes=5)
MIN_WINDOW, MAX_WINDOW = timedelta(minutes=1), timedelta(hours=24)
_REJECTIONS = 16
"""Rejections in the first portion of a page: an original may have several megabytes."""


class RecordReads:
    """Handlers that return single records: devices, spools, gaps, rejections, predictions.

    Args:
        queries: runs the queries.
        now: the server's wall clock, UTC.
        page_bytes: maximum size of a page of more than one entry, bytes.
    """

    ACCESS: Mapping[str, Scope] = {
        "ListDevices": Scope.READ,
        "GetLedger": Scope.READ,
        "ListGaps": Scope.READ,
        "ListRejections": Scope.READ,
        "GetPrediction": Scope.READ,
    }

    UNLIMITED: Sequence[str] = ()

    def __init__(self, queries: Queries, *, now: Callable[[], datetime], page_bytes: int) -> None:
        self._queries = queries
        self._now = now
        self._page_bytes = page_bytes

    def handlers(self) -> "Mapping[str, grpc.RpcMethodHandler[Any, Any]]":
        """Return the handlers by method."""
        return {
            "ListDevices": unary(self.list_devices, reads_pb2.ListDevicesRequest),
            "GetLedger": unary(self.get_ledger, reads_pb2.GetLedgerRequest),
            "ListGaps": unary(self.list_gaps, reads_pb2.ListGapsRequest),
            "ListRejections": unary(self.list_rejections, reads_pb2.ListRejectionsRequest),
            "GetPrediction": unary(self.get_prediction, reads_pb2.GetPredictionRequest),
        }

    async def list_devices(
        self, request: reads_pb2.ListDevicesRequest, _context: _Context
    ) -> reads_pb2.ListDevicesResponse:
        """Return a page of devices, in the order of their ids."""
        devices, window = _devices(request.device_ids), _window(request)
        size, scope = page_size(request.page_size), ("devices", devices)
        after = decode_token(request.page_token, scope) if request.page_token else None
        now = self._now()
        query = FleetQuery(devices, now, window)
        records = await self._queries.run(lambda reader: reader.devices(query, size + 1, after))
        response = reads_pb2.ListDevicesResponse(
            devices=[device_message(record, window) for record in records[:size]]
        )
        if len(records) > size:
            last = Position(0, records[size - 1].device_id, "", 0)
            response.next_page_token = encode_token(last, scope)
        response.server_time.FromDatetime(now)
        return response

    async def get_ledger(
        self, request: reads_pb2.GetLedgerRequest, _context: _Context
    ) -> reads_pb2.GetLedgerResponse:
        """Return a page of the ledger, and its total."""
        devices = _devices(request.device_ids)
        size, scope = page_size(request.page_size), ("ledger", devices)
        after = decode_token(request.page_token, scope) if request.page_token else None
        records, total = await self._queries.run(
            lambda reader: reader.ledger(devices, size + 1, after)
        )
        response = reads_pb2.GetLedgerResponse(
            entries=[ledger_message(record) for record in records[:size]],
            total=ledger_message(total),
        )
        if len(records) > size:
            last = records[size - 1]
            position = Position(last.updated_us or 0, last.device_id, last.spool_id, 0)
            response.next_page_token = encode_token(position, scope)
        return response

    async def list_gaps(
        self, request: reads_pb2.ListGapsRequest, _context: _Context
    ) -> reads_pb2.ListGapsResponse:
        """Return a page of gaps, newest commit first."""
        wanted = LossFilter(_devices(request.device_ids), _gap_reason(request.reason))
        size, scope = page_size(request.page_size), ("gaps", wanted)
        after = decode_token(request.page_token, scope) if request.page_token else None
        page = reads_pb2.ListGapsResponse()

        def as_message(row: GapRecord) -> tuple[reads_pb2.StoredGap, Position]:
            place = (row.received_us, row.device_id, row.spool_id, row.first_sequence)
            return gap_message(row), Position(*place)

        last = await self._queries.run(
            lambda reader: fill_page(
                page.gaps,
                lambda count, start: reader.gaps(wanted, count, start),
                as_message,
                size,
                after,
                self._page_bytes,
                size,
            )
        )
        if last is not None:
            page.next_page_token = encode_token(last, scope)
        return page

    async def list_rejections(
        self, request: reads_pb2.ListRejectionsRequest, _context: _Context
    ) -> reads_pb2.ListRejectionsResponse:
        """Return a page of rejected predictions, newest commit first."""
        wanted = LossFilter(_devices(request.device_ids), request.reason or None)
        size, scope = page_size(request.page_size), ("rejections", wanted)
        after = decode_token(request.page_token, scope) if request.page_token else None
        page = reads_pb2.ListRejectionsResponse()

        def as_message(row: RejectedRecord) -> tuple[reads_pb2.StoredRejection, Position]:
            place = (row.received_us, row.device_id, row.spool_id, row.sequence)
            return rejection_message(row), Position(*place)

        last = await self._queries.run(
            lambda reader: fill_page(
                page.rejections,
                lambda count, start: reader.rejections(wanted, count, start),
                as_message,
                size,
                after,
                self._page_bytes,
                _REJECTIONS,
            )
        )
        if last is not None:
            page.next_page_token = encode_token(last, scope)
        return page

    async def get_prediction(
        self, request: reads_pb2.GetPredictionRequest, _context: _Context
    ) -> reads_pb2.GetPredictionResponse:
        """Return what became of one sequence."""
        spool = parse_spool(request.device_id, request.spool_id)
        current_caller().require_device(spool.device_id)
        if request.sequence < 1:
            raise invalid("sequence", f"must be 1 or more, got {request.sequence}")
        sequence = request.sequence
        return await self._queries.run(lambda reader: find(reader, spool, sequence))


def find(reader: Reader, spool: SpoolKey, sequence: int) -> reads_pb2.GetPredictionResponse:
    """Return what became of a sequence.

    Raises:
        SightlineError: NOT_FOUND, `NOT_COMMITTED` or `EXPIRED`; DATA_LOSS, `SEQUENCE_LOST`.
    """
    found = reader.find(spool, sequence)
    if isinstance(found, Absence):
        raise _absent(found, sequence)
    if isinstance(found, RejectedRecord):
        return reads_pb2.GetPredictionResponse(rejection=rejection_message(found))
    if isinstance(found, GapRecord):
        return reads_pb2.GetPredictionResponse(gap=gap_message(found))
    # The first one after the next sequence in the order of pages, which is descending.
    following = Position(found.received_us, *spool, sequence + 1)
    (stored,) = reader.page(Filter(device_ids=(spool.device_id,)), 1, following)
    return reads_pb2.GetPredictionResponse(prediction=stored_to_proto(stored))


def _absent(absence: Absence, sequence: int) -> SightlineError:
    if absence is Absence.LOST:
        return SightlineError(
            grpc.StatusCode.DATA_LOSS,
            "SEQUENCE_LOST",
            f"sequence {sequence} was committed, and is neither stored nor deleted by retention:"
            " the ledger of its spool does not balance",
        )
    reason, rule = (
        ("EXPIRED", "has been deleted by retention")
        if absence is Absence.EXPIRED
        else ("NOT_COMMITTED", "is not committed")
    )
    return SightlineError(
        grpc.StatusCode.NOT_FOUND, reason, f"sequence {sequence} of this spool {rule}"
    )


def _devices(device_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the devices of a request, restricted to those of its caller."""
    return visible_devices(values_of(device_ids, "device_ids"), current_caller(), "device_ids")


def _window(request: reads_pb2.ListDevicesRequest) -> timedelta:
    if not request.HasField("window"):
        return DEFAULT_WINDOW
    time: Duration = request.window
    nanoseconds = time.seconds * 10**9 + time.nanos
    low, high = (round(bound.total_seconds()) for bound in (MIN_WINDOW, MAX_WINDOW))
    if not low * 10**9 <= nanoseconds <= high * 10**9:
        raise invalid("window", f"must be {low} to {high} s, got {nanoseconds / 1e9:g} s")
    return timedelta(microseconds=nanoseconds // 1000)


def _gap_reason(number: int) -> str | None:
    if number < 0:
        raise invalid("reason", f"must be a GapReason, got {number}")
    return gap_reason_name(number)
