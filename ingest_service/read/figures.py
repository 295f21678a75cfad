"""Handlers of the reads that count: over time, on the frame, by confidence, by model version."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import grpc
from sightline.ingest.v1 import reads_pb2

from ingest_service.read.figure_messages import (
    confidence_response,
    frame_response,
    series_response,
    versions_response,
)
from ingest_service.read.figure_ranges import (
    confidence_hours,
    frame_cells,
    frame_filter,
    series_slots,
    versions_filter,
)
from ingest_service.read.handlers import unary
from ingest_service.read.queries import Queries
from ingest_service.read.visible import visible
from servicekit.auth.caller import Scope, current_caller

_Context = grpc.aio.ServicerContext[Any, Any]


class FigureReads:
    """Handlers that count predictions and detections.

    Args:
        queries: runs the queries.
        now: the server's wall clock, UTC.
        page_bytes: maximum size of a response, bytes.
    """

    ACCESS: Mapping[str, Scope] = {
        "GetSeries": Scope.READ,
        "GetFrame": Scope.READ,
        "GetConfidence": Scope.READ,
        "ListModelVersions": Scope.READ,
    }
    UNLIMITED: Sequence[str] = ()

    def __init__(self, queries: Queries, *, now: Callable[[], datetime], page_bytes: int) -> None:
        self._queries = queries
        self._now = now
        self._page_bytes = page_bytes

    def handlers(self) -> "Mapping[str, grpc.RpcMethodHandler[Any, Any]]":
        """Return the handlers by method."""
        return {
            "GetSeries": unary(self.get_series, reads_pb2.GetSeriesRequest),
            "GetFrame": unary(self.get_frame, reads_pb2.GetFrameRequest),
            "GetConfidence": unary(self.get_confidence, reads_pb2.GetConfidenceRequest),
            "ListModelVersions": unary(
                self.list_model_versions, reads_pb2.ListModelVersionsRequest
            ),
        }

    async def get_series(
        self, request: reads_pb2.GetSeriesRequest, _context: _Context
    ) -> reads_pb2.GetSeriesResponse:
        """Return counts over time."""
        slots = series_slots(request, self._now())
        wanted = visible(slots.filter, current_caller())
        bucket_us = slots.bucket // timedelta(microseconds=1)
        series = await self._queries.run(lambda reader: reader.series(wanted, bucket_us))
        return series_response(series, slots, self._page_bytes)

    async def get_frame(
        self, request: reads_pb2.GetFrameRequest, _context: _Context
    ) -> reads_pb2.GetFrameResponse:
        """Return the positions of detections on the frame."""
        wanted = visible(frame_filter(request, self._now()), current_caller())
        columns, rows = frame_cells(request)
        frame = await self._queries.run(lambda reader: reader.frame(wanted, columns, rows))
        return frame_response(frame, columns, rows)

    async def get_confidence(
        self, request: reads_pb2.GetConfidenceRequest, _context: _Context
    ) -> reads_pb2.GetConfidenceResponse:
        """Return the confidences of now and of a reference."""
        wanted, now, reference = confidence_hours(request, self._now())
        wanted = visible(wanted, current_caller())
        found = await self._queries.run(lambda reader: reader.confidences(wanted, reference))
        return confidence_response(found, now, reference)

    async def list_model_versions(
        self, request: reads_pb2.ListModelVersionsRequest, _context: _Context
    ) -> reads_pb2.ListModelVersionsResponse:
        """Return the versions of models in the log."""
        wanted = visible(versions_filter(request, self._now()), current_caller())
        return versions_response(
            await self._queries.run(lambda reader: reader.model_versions(wanted))
        )
