"""Routes that read the log."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from sightline.ingest.v1.ingest_service_pb2 import (
    GetStatsRequest,
    GetStatsResponse,
    ListPredictionsRequest,
    ListPredictionsResponse,
)
from starlette.responses import Response

from console_service.answers import answer
from console_service.backend import INGEST
from console_service.context import READ, Calling, Here
from console_service.query import FilterParameters, PageParameters
from console_service.schemas import answers

router = APIRouter(tags=["log"], dependencies=[READ])


class StatsParameters(FilterParameters):
    """Parameters of `/stats`."""

    details: bool = Field(
        False, description="also count cloud reasons and the label `source`; reads every prediction"
    )


class PredictionsParameters(FilterParameters, PageParameters):
    """Parameters of `/predictions`."""


@router.get("/stats", responses=answers(GetStatsResponse))
async def stats(here: Here, call: Calling, query: Annotated[StatsParameters, Query()]) -> Response:
    """Count predictions by device, model, source and class."""
    request = GetStatsRequest(filter=query.filter(), details=query.details)
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.GetStats, request, call)
    devices = {entry.key: entry.count for entry in found.by_device}
    return answer(found, call, more={"by_edge_device": devices})


@router.get("/predictions", responses=answers(ListPredictionsResponse))
async def predictions(
    here: Here, call: Calling, query: Annotated[PredictionsParameters, Query()]
) -> Response:
    """List predictions, newest commit first."""
    request = ListPredictionsRequest(
        filter=query.filter(), page_size=query.size, page_token=query.page_token
    )
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.ListPredictions, request, call)
    return answer(found, call)
