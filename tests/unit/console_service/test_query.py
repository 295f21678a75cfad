"""Query strings become filters of the contract."""

from typing import Any

import pytest
from pydantic import ValidationError
from sightline.ingest.v1.ingest_pb2 import PredictionFilter
from sightline.types.v1.prediction_pb2 import PREDICTION_SOURCE_CLOUD

from console_service.mistakes import refused
from console_service.query import FilterParameters, PageParameters


def filter_of(**given: Any) -> PredictionFilter:
    return FilterParameters.model_validate(given).filter()


def test_no_parameter_matches_every_prediction() -> None:
    assert filter_of() == PredictionFilter()


def test_each_parameter_is_a_condition() -> None:
    found = filter_of(
        device_id=["a"],
        edge_device_id=["b"],
        model_name=["m"],
        class_name=["c"],
        defect_detected="false",
        source="cloud",
        min_confidence="0.5",
        start_time="2026-11-30T00:00:00Z",
        end_time="2026-11-30T02:00:00 01:00",  # a + that became a blank on the way
    )
    wanted = PredictionFilter(
        device_ids=["a", "b"],
        model_names=["m"],
        class_names=["c"],
        defect_detected=False,
        source=PREDICTION_SOURCE_CLOUD,
        min_confidence=0.5,
    )
    wanted.start_time.FromJsonString("2026-11-30T00:00:00Z")
    wanted.end_time.FromJsonString("2026-11-30T01:00:00Z")
    assert found == wanted
    parameters = set(FilterParameters.model_fields) - {"edge_device_id"}
    singular = {field.name.replace("_ids", "_id") for field in PredictionFilter.DESCRIPTOR.fields}
    singular = {name.replace("_names", "_name") for name in singular}
    assert parameters == singular, "a field of the contract has no parameter"


@pytest.mark.parametrize(
    ("given", "field", "sentence"),
    [
        ({"min_confidence": "2"}, "min_confidence", "must be less than or equal to 1, got '2'"),
        ({"source": "edge"}, "source", "must be 'device' or 'cloud', got 'edge'"),
        ({"start_time": "2026-11-30T00:00:00"}, "start_time", "must have timezone info"),
        ({"start_time": "today"}, "start_time", "must be a valid datetime"),
        (
            {"start_time": "0001-01-01T00:00:00+14:00"},
            "start_time",
            "in the years 1 to 9999 in UTC",
        ),
        ({"end_time": "9999-12-31T23:59:59-14:00"}, "end_time", "in the years 1 to 9999 in UTC"),
        ({"defect_detected": "maybe"}, "defect_detected", "must be a valid boolean"),
        ({"model_nmae": "m"}, "model_nmae", "is no parameter here, did you mean model_name?"),
        ({"model_name": ["m"] * 1001}, "model_name", "at most 1000 items"),
    ],
)
def test_a_mistake_names_its_parameter(given: dict[str, Any], field: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FilterParameters.model_validate(given)
    error = refused(caught.value.errors(), "query", FilterParameters.model_fields)
    assert error.violations[0].field == field
    assert sentence in error.message


def page(**given: int) -> int:
    return PageParameters.model_validate(given).size


def test_a_page_has_two_names_for_its_size() -> None:
    assert [page(limit=5), page(page_size=6), page()] == [5, 6, 0]
