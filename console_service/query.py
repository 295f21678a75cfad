"""Query strings: their parameters, and the filters of the contract that they become.

Names are those of the contract, with a few that older programs use. An unknown parameter is
refused: a mistyped filter would otherwise match every prediction.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from sightline.ingest.v1.ingest_pb2 import PredictionFilter
from sightline.types.v1.prediction_pb2 import PredictionSource

_SOURCES = {
    "device": PredictionSource.PREDICTION_SOURCE_DEVICE,
    "cloud": PredictionSource.PREDICTION_SOURCE_CLOUD,
}


def _zone_with_plus(value: object) -> object:
    """Return a time whose `+` of the zone has become a blank, as in every URL, with it again."""
    return re.sub(r" (\d\d:?\d\d)$", r"+\1", value) if isinstance(value, str) else value


def _in_utc(time: datetime) -> datetime:
    """Return a time in UTC. Raises ValueError for one that is out of years 1 to 9999 there."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be in the years 1 to 9999 in UTC") from None


Time = Annotated[AwareDatetime, BeforeValidator(_zone_with_plus), AfterValidator(_in_utc)]
Names = Annotated[list[str], Field(max_length=1000)]


class QueryParameters(BaseModel):
    """Parameters of a query string; those that are not declared are refused."""

    model_config = ConfigDict(extra="forbid")


class DeviceParameters(QueryParameters):
    """The devices of a read."""

    device_id: Names = Field([], description="only these devices; may be repeated; none: all")
    edge_device_id: Names = Field([], description="another name of device_id")

    @property
    def devices(self) -> list[str]:
        """Names of the devices; empty: all."""
        return [*self.device_id, *self.edge_device_id]


class FilterParameters(DeviceParameters):
    """A filter of predictions: all conditions must hold."""

    model_name: Names = Field([], description="only these models; may be repeated; none: all")
    class_name: Names = Field(
        [], description="only predictions with a detection of one of these classes; none: all"
    )
    defect_detected: bool | None = Field(None, description="only this verdict; not given: all")
    source: Literal["device", "cloud"] | None = Field(
        None, description="only predictions of this place; not given: both"
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="only predictions with a detection of at least this confidence",
    )
    start_time: Time | None = Field(
        None, description="only images captured at or after this time, RFC 3339"
    )
    end_time: Time | None = Field(
        None, description="only images captured before this time, RFC 3339"
    )

    def filter(self) -> PredictionFilter:
        """Return the filter of the contract."""
        made = PredictionFilter(
            device_ids=self.devices,
            model_names=self.model_name,
            class_names=self.class_name,
            defect_detected=self.defect_detected,
            min_confidence=self.min_confidence,
        )
        if self.source is not None:
            made.source = _SOURCES[self.source]
        set_time(made, "start_time", self.start_time)
        set_time(made, "end_time", self.end_time)
        return made


class PageParameters(QueryParameters):
    """A page of a list."""

    page_size: int = Field(0, ge=0, le=1000, description="entries of a page; 0: 100")
    limit: int = Field(0, ge=0, le=1000, description="another name of page_size")
    page_token: str = Field("", description="next_page_token of the page before; none: the first")

    @property
    def size(self) -> int:
        """Number of entries; 0: the server's default."""
        return self.page_size or self.limit


def set_time(message: Any, field: str, time: datetime | None) -> None:  # noqa: ANN401
    """Set a Timestamp field of a message, unless the time is None."""
    if time is not None:
        getattr(message, field).FromDatetime(time)


def set_seconds(message: Any, field: str, seconds: float | None) -> None:  # noqa: ANN401
    """Set a Duration field of a message, unless the number of seconds is None."""
    if seconds is not None:
        getattr(message, field).FromNanoseconds(round(seconds * 1e9))
