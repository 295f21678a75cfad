from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sightline.ingest.v1.ingest_service_pb2 import PredictionLogRequest
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive.decode import LIMITS, Decoder
from ingest_service.receive.group import Message, prepare
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import (
    NOW,
    gap,
    header,
    message,
    prediction,
    predictions,
    request,
    timestamp,
)


def refused(decoder: Decoder, *messages: Message) -> dict[int, SightlineError]:
    return dict(prepare(messages, decoder, NOW).refused)


def as_message(body: PredictionLogRequest, *, first: bool = False) -> Message:
    return message(payload=body.SerializeToString(), first=first)


def test_a_good_group_is_taken_whole(decoder: Decoder) -> None:
    group = prepare(
        [message(*predictions(1, 3)), message(*predictions(4, 5), gap(6, 7), first=False)],
        decoder,
        NOW,
    )
    assert not group.refused
    assert not group.violations
    assert group.claims.sequence.tolist() == [1, 2, 3, 4, 5]
    assert group.claims.message.tolist() == [0, 0, 0, 1, 1]


def test_what_cannot_be_read_is_refused_alone(decoder: Decoder) -> None:
    errors = refused(
        decoder, message(prediction(1)), message(payload=b"\xff"), message(prediction(2))
    )
    assert {index: error.reason for index, error in errors.items()} == {1: "MALFORMED_MESSAGE"}


def test_a_header_belongs_in_the_first_message_only(decoder: Decoder) -> None:
    late = as_message(request(prediction(1), head=header()))
    errors = refused(decoder, message(prediction(1)), late)
    assert {index: error.violations[0].field for index, error in errors.items()} == {1: "header"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (request(*[Prediction()] * (LIMITS["predictions"] + 1)), "predictions"),
        (request(*[gap(1, 1)] * (LIMITS["gaps"] + 1)), "gaps"),
        (request(prediction(2), prediction(1)), "predictions[1].sequence"),
        (request(gap(1, 1), gap(2, 3, reason=0)), "gaps[1].reason"),
        (
            request(gap(1, 1, declared_at=Timestamp(seconds=2**62))),
            "gaps[0].declared_at",
        ),
        (
            request(gap(1, 1, declared_at=Timestamp(seconds=-(2**62)))),
            "gaps[0].declared_at",
        ),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused_by_field(
    decoder: Decoder, body: PredictionLogRequest, field: str
) -> None:
    good = message(prediction(1))
    errors = refused(decoder, good, as_message(body), good)
    assert {index: error.violations[0].field for index, error in errors.items()} == {1: field}
    assert errors[1].code.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "body",
    [
        request(*predictions(1, LIMITS["predictions"])),
        request(*[gap(sequence, sequence) for sequence in range(1, LIMITS["gaps"] + 1)]),
        request(gap(1, 1, declared_at=timestamp(NOW - timedelta(days=20_000)))),
        request(gap(1, 1, reason=77)),
    ],
)
def test_a_message_at_its_bounds_is_taken(decoder: Decoder, body: PredictionLogRequest) -> None:
    assert not refused(decoder, as_message(body))


def test_broken_predictions_do_not_refuse_their_message(decoder: Decoder) -> None:
    broken: dict[str, Any] = {"model_name": ""}
    group = prepare([message(prediction(1), prediction(2, **broken))], decoder, NOW)
    assert not group.refused
    assert {row: violation.reason for row, violation in group.violations.items()} == {
        1: "MODEL_NAME_REQUIRED"
    }
