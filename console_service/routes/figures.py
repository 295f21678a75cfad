"""Routes that count over time, over the frame, by confidence and by version of a model."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from sightline.inference.v1.inference_service_pb2 import ListModelsRequest, ListModelsResponse
from sightline.ingest.v1.reads_pb2 import (
    GetConfidenceRequest,
    GetConfidenceResponse,
    GetFrameRequest,
    GetFrameResponse,
    GetSeriesRequest,
    GetSeriesResponse,
    ListModelVersionsRequest,
    ListModelVersionsResponse,
)
from starlette.responses import Response

from console_service.answers import answer
from console_service.backend import INFERENCE, INGEST
from console_service.context import READ, Calling, Here
from console_service.query import FilterParameters, QueryParameters, Time, set_seconds, set_time
from console_service.schemas import answers

router = APIRouter(tags=["figures"], dependencies=[READ])


class SeriesParameters(FilterParameters):
    """Parameters of `/series`."""

    bucket: float | None = Field(
        None,
        gt=0,
        le=31 * 86_400,
        description="length of a bucket of time, s; from an hour on, whole hours; not given: an"
        " hour",
    )


class FrameParameters(FilterParameters):
    """Parameters of `/frame`."""

    columns: int = Field(0, ge=0, le=64, description="columns of the grid; 0: 32")
    rows: int = Field(0, ge=0, le=64, description="rows of the grid; 0: 18")


class ConfidenceParameters(FilterParameters):
    """Parameters of `/confidence`."""

    reference_start_time: Time | None = Field(
        None, description="begin of the range to compare with; not given: seven days before its end"
    )
    reference_end_time: Time | None = Field(
        None, description="end of the range to compare with; not given: start_time"
    )


class NoParameters(QueryParameters):
    """A query string without parameters."""


@router.get("/series", responses=answers(GetSeriesResponse))
async def series(
    here: Here, call: Calling, query: Annotated[SeriesParameters, Query()]
) -> Response:
    """Count predictions over time."""
    request = GetSeriesRequest(filter=query.filter())
    set_seconds(request, "bucket", query.bucket)
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.GetSeries, request, call)
    return answer(found, call)


@router.get("/frame", responses=answers(GetFrameResponse))
async def frame(here: Here, call: Calling, query: Annotated[FrameParameters, Query()]) -> Response:
    """Count detections by where they lie on the frame."""
    request = GetFrameRequest(filter=query.filter(), columns=query.columns, rows=query.rows)
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.GetFrame, request, call)
    return answer(found, call)


@router.get("/confidence", responses=answers(GetConfidenceResponse))
async def confidence(
    here: Here, call: Calling, query: Annotated[ConfidenceParameters, Query()]
) -> Response:
    """Compare the confidences of detections with those of an earlier time."""
    request = GetConfidenceRequest(filter=query.filter())
    set_time(request, "reference_start_time", query.reference_start_time)
    set_time(request, "reference_end_time", query.reference_end_time)
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.GetConfidence, request, call)
    return answer(found, call)


@router.get("/models", responses=answers(ListModelVersionsResponse))
async def versions(
    here: Here, call: Calling, query: Annotated[FilterParameters, Query()]
) -> Response:
    """List the versions of models in the log, with what each has answered."""
    request = ListModelVersionsRequest(filter=query.filter())
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.ListModelVersions, request, call)
    return answer(found, call)


@router.get("/models/loaded", responses=answers(ListModelsResponse))
async def loaded(here: Here, call: Calling, _: Annotated[NoParameters, Query()]) -> Response:
    """List the models that the inference service has loaded."""
    backend = here.backend
    found, _trailing = await backend.ask(
        INFERENCE, backend.inference.ListModels, ListModelsRequest(), call
    )
    return answer(found, call)
