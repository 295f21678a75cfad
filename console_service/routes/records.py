"""Routes of devices, spools, gaps, rejections and single predictions."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field
from sightline.ingest.v1.ingest_pb2 import GapReason
from sightline.ingest.v1.reads_pb2 import (
    GetLedgerRequest,
    GetLedgerResponse,
    GetPredictionRequest,
    GetPredictionResponse,
    ListDevicesRequest,
    ListDevicesResponse,
    ListGapsRequest,
    ListGapsResponse,
    ListRejectionsRequest,
    ListRejectionsResponse,
)
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import Response

from console_service.answers import answer
from console_service.backend import INGEST
from console_service.context import READ, Calling, Here
from console_service.query import DeviceParameters, PageParameters, set_seconds
from console_service.schemas import answers
from servicekit.errors import invalid
from servicekit.plain import words_of

router = APIRouter(tags=["records"], dependencies=[READ])
_GAP_REASONS = {
    word: GapReason.DESCRIPTOR.values_by_number[number].name
    for number, word in words_of(GapReason.DESCRIPTOR).items()
    if word
}


class NameConvertor(PathConvertor):
    """Any text in a path. Starlette's own `path` ends at a line break, which ids may have."""

    regex = r"(?s:.*)"


register_url_convertor("name", NameConvertor())
_ANY_REASON = "GAP_REASON_UNSPECIFIED"


class DevicesParameters(DeviceParameters, PageParameters):
    """Parameters of `/devices`."""

    window: float | None = Field(
        None,
        ge=60,
        le=86_400,
        description="time of the rate of now, s; not given: 300",
    )


class LedgerParameters(DeviceParameters, PageParameters):
    """Parameters of `/ledger`."""


class GapsParameters(DeviceParameters, PageParameters):
    """Parameters of `/gaps`."""

    reason: str = Field("", description=f"only this reason: {', '.join(_GAP_REASONS)}")


class RejectionsParameters(DeviceParameters, PageParameters):
    """Parameters of `/rejections`."""

    reason: str = Field("", description="only this reason, such as CONFIDENCE_OUT_OF_RANGE")


@router.get("/devices", responses=answers(ListDevicesResponse))
async def devices(
    here: Here, call: Calling, query: Annotated[DevicesParameters, Query()]
) -> Response:
    """List the devices of the fleet: when each was last received, its rate, clock and backlog."""
    request = ListDevicesRequest(
        device_ids=query.devices, page_size=query.size, page_token=query.page_token
    )
    set_seconds(request, "window", query.window)
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.ListDevices, request, call)
    return answer(found, call)


@router.get("/ledger", responses=answers(GetLedgerResponse))
async def ledger(
    here: Here, call: Calling, query: Annotated[LedgerParameters, Query()]
) -> Response:
    """Return the account of each spool."""
    request = GetLedgerRequest(
        device_ids=query.devices, page_size=query.size, page_token=query.page_token
    )
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.GetLedger, request, call)
    return answer(found, call)


@router.get("/gaps", responses=answers(ListGapsResponse))
async def gaps(here: Here, call: Calling, query: Annotated[GapsParameters, Query()]) -> Response:
    """List the gaps that devices declared, newest commit first."""
    if query.reason and query.reason not in _GAP_REASONS:
        raise invalid("reason", f"must be one of {', '.join(_GAP_REASONS)}, got {query.reason!r}")
    request = ListGapsRequest(
        device_ids=query.devices,
        reason=GapReason.Value(_GAP_REASONS.get(query.reason, _ANY_REASON)),
        page_size=query.size,
        page_token=query.page_token,
    )
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.ListGaps, request, call)
    return answer(found, call)


@router.get("/rejections", responses=answers(ListRejectionsResponse))
async def rejections(
    here: Here, call: Calling, query: Annotated[RejectionsParameters, Query()]
) -> Response:
    """List rejected predictions with their originals, newest commit first."""
    request = ListRejectionsRequest(
        device_ids=query.devices,
        reason=query.reason,
        page_size=query.size,
        page_token=query.page_token,
    )
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.ListRejections, request, call)
    return answer(found, call)


@router.get(
    "/predictions/{device_id:name}/{spool_id}/{sequence}", responses=answers(GetPredictionResponse)
)
async def prediction(
    here: Here,
    call: Calling,
    device_id: str,
    spool_id: str,
    sequence: Annotated[int, Path(ge=1, le=2**63 - 1)],
) -> Response:
    """Return what became of one sequence: a prediction, a rejection or a gap."""
    request = GetPredictionRequest(device_id=device_id, spool_id=spool_id, sequence=sequence)
    found, _ = await here.backend.ask(INGEST, here.backend.ingest.GetPrediction, request, call)
    return answer(found, call)
