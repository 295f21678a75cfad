import math
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_pb2 import PredictionFilter
from sightline.types.v1.prediction_pb2 import PredictionSource

from ingest_service.store.protocol import Filter
from ingest_service.translate import filter_from_proto
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import NOW, timestamp


def test_an_empty_filter_matches_all() -> None:
    assert filter_from_proto(PredictionFilter()) == Filter()


def test_every_condition_is_taken_over() -> None:
    message = PredictionFilter(
        device_ids=["d"] * 1000,
        model_names=["m"] * 1000,
        class_names=["c"] * 1000,
        defect_detected=False,
        source=PredictionSource.PREDICTION_SOURCE_CLOUD,
        min_confidence=1.0,
        start_time=timestamp(NOW),
        end_time=timestamp(NOW),
    )
    assert filter_from_proto(message) == Filter(
        ("d",) * 1000, ("m",) * 1000, ("c",) * 1000, False, "cloud", 1.0, NOW, NOW
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"device_ids": ["d"] * 1001}, "filter.device_ids"),
        ({"model_names": ["m"] * 1001}, "filter.model_names"),
        ({"class_names": ["c"] * 1001}, "filter.class_names"),
        ({"source": 3}, "filter.source"),
        ({"source": -1}, "filter.source"),
        ({"min_confidence": -0.001}, "filter.min_confidence"),
        ({"min_confidence": 1.001}, "filter.min_confidence"),
        ({"min_confidence": math.nan}, "filter.min_confidence"),
        ({"start_time": Timestamp(seconds=2**62)}, "filter.start_time"),
        ({"end_time": Timestamp(nanos=-1)}, "filter.end_time"),
        ({"start_time": timestamp(NOW), "end_time": Timestamp()}, "filter.end_time"),
    ],
)
def test_a_condition_out_of_its_bounds_is_refused_by_field(
    fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(SightlineError) as caught:
        filter_from_proto(PredictionFilter(**fields))
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert caught.value.violations[0].field == field
