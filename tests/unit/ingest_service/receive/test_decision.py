import json
import math
from typing import Any

import pytest

from ingest_service.receive.decision import MAX_JSON_ORIGINALS, decide
from ingest_service.receive.decode import Decoder
from ingest_service.receive.group import Message, MessageOutcome, Rejection, prepare
from ingest_service.store.protocol import Changes, Generation, SpoolKey, Watermark
from tests.unit.ingest_service.samples import (
    NOW,
    SPOOL,
    detection,
    gap,
    message,
    prediction,
    predictions,
    spool,
)


def run(
    decoder: Decoder, *messages: Message, watermarks: dict[SpoolKey, int] | None = None
) -> tuple[Changes, tuple[MessageOutcome, ...]]:
    group = prepare(messages, decoder, NOW)
    through = watermarks or {}
    return decide(group, {key: committed(through.get(key, 0)) for key in group.spools})


def committed(through: int) -> Watermark:
    """Return the watermark of a client without generations, from before digests were kept."""
    return Watermark(through, generations=(Generation("", 0),) if through else ())


def sequences(changes: Changes) -> list[int]:
    numbers: list[int] = changes.predictions.column("sequence").to_pylist()
    return numbers


def test_what_is_new_is_written_and_counted(decoder: Decoder) -> None:
    changes, outcomes = run(decoder, message(*predictions(1, 3), gap(4, 6)))
    assert outcomes == (MessageOutcome(6, accepted=3, gap_sequences=3),)
    assert sequences(changes) == [1, 2, 3]
    (row,) = changes.watermarks.to_pylist()
    assert (row["committed_through"], row["duplicates"]) == (6, 0)


def test_rejected_predictions_hold_their_place_and_nothing_else_of_it(decoder: Decoder) -> None:
    bad = detection(confidence=math.nan)
    changes, outcomes = run(
        decoder,
        message(prediction(1), prediction(2, detections=[bad]), prediction(3)),
        message(prediction(4, model_name=""), first=False),
    )
    assert sequences(changes) == [1, 3]
    assert [outcome.rejections for outcome in outcomes] == [
        (Rejection(2, "detections[0].confidence", "CONFIDENCE_OUT_OF_RANGE"),),
        (Rejection(4, "model_name", "MODEL_NAME_REQUIRED"),),
    ]
    assert [outcome.accepted for outcome in outcomes] == [2, 0]
    assert outcomes[1].committed_through == 4
    kept = changes.rejected.to_pylist()
    assert [(row["sequence"], row["field"]) for row in kept] == [
        (2, "detections[0].confidence"),
        (4, "model_name"),
    ]
    original = json.loads(kept[0]["original"])
    assert (original["sequence"], original["detections"][0]["confidence"]) == ("2", "NaN")


def test_only_so_many_rejected_predictions_of_a_group_are_written_out(decoder: Decoder) -> None:
    """Converting a prediction to JSON takes a hundred times as long as accepting it."""
    half = MAX_JSON_ORIGINALS // 2 + 1
    changes, _ = run(
        decoder,
        message(*(prediction(n, model_name="") for n in range(1, half + 1))),
        message(
            *(prediction(n, model_name="") for n in range(half + 1, 2 * half + 1)), first=False
        ),
    )
    originals = [set(json.loads(row["original"])) for row in changes.rejected.to_pylist()]
    assert len(originals) == 2 * half
    assert [keys == {"wire_base64"} for keys in originals] == [
        n >= MAX_JSON_ORIGINALS for n in range(2 * half)
    ]


def test_a_rejected_prediction_that_comes_again_is_a_duplicate(decoder: Decoder) -> None:
    changes, outcomes = run(decoder, message(prediction(1, model_name="")), watermarks={SPOOL: 1})
    assert outcomes == (MessageOutcome(1, duplicates=1),)
    assert changes.rejected.num_rows == 0


def test_another_content_under_a_committed_sequence_is_a_conflict(decoder: Decoder) -> None:
    changes, outcomes = run(
        decoder,
        message(prediction(1, image_id="first")),
        message(prediction(1, image_id="other"), stream=1),
    )
    assert changes.predictions.column("image_id").to_pylist() == ["first"]
    assert [outcome.duplicates for outcome in outcomes] == [0, 0]
    error = outcomes[1].error
    assert error is not None
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "SEQUENCE_CONFLICT")
    assert error.metadata["sequence"] == "1"


def test_a_hole_ends_its_stream_with_the_sequence_that_is_expected(decoder: Decoder) -> None:
    changes, outcomes = run(
        decoder,
        message(*predictions(1, 2), prediction(4)),
        message(*predictions(5, 6), first=False),
        message(prediction(1), of=spool(2), stream=1),
    )
    error = outcomes[0].error
    assert error is not None
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "SEQUENCE_HOLE")
    assert error.metadata == {"expected_sequence": "3"}
    assert outcomes[0].committed_through == 2
    assert outcomes[1] == MessageOutcome(), "what follows a hole counts for nothing"
    assert outcomes[2] == MessageOutcome(1, accepted=1)
    assert sequences(changes) == [1, 2, 1]


def test_a_refused_message_takes_nothing_of_its_stream_that_follows_it(decoder: Decoder) -> None:
    changes, outcomes = run(
        decoder,
        message(prediction(1)),
        message(payload=b"\xff", first=False),
        message(prediction(2), first=False),
        message(prediction(2), stream=1),
    )
    assert [outcome.error and outcome.error.reason for outcome in outcomes] == [
        None,
        "MALFORMED_MESSAGE",
        None,
        None,
    ]
    assert sequences(changes) == [1, 2]
    assert [outcome.accepted for outcome in outcomes] == [1, 0, 0, 1]


def test_a_group_of_nothing_but_refused_messages_changes_nothing(decoder: Decoder) -> None:
    changes, _ = run(decoder, message(payload=b"\xff"))
    tables = (changes.predictions, changes.rejected, changes.gaps, changes.streams)
    assert [table.num_rows for table in (*tables, changes.watermarks)] == [0] * 5


def test_only_the_first_message_of_a_stream_records_its_opening(decoder: Decoder) -> None:
    changes, _ = run(decoder, message(prediction(1)), message(prediction(2), first=False))
    assert changes.streams.num_rows == 1


@pytest.mark.parametrize(("number", "name"), [(1, "dropped_oldest"), (77, "reason_77")])
def test_a_gap_keeps_its_reason_even_one_of_a_newer_contract(
    decoder: Decoder, number: int, name: str
) -> None:
    changes, _ = run(decoder, message(gap(1, 2, reason=number)))
    assert changes.gaps.column("reason").to_pylist() == [name]


def test_the_committed_part_of_a_gap_is_cut(decoder: Decoder) -> None:
    changes, outcomes = run(decoder, message(gap(1, 9), prediction(10)), watermarks={SPOOL: 4})
    recorded: list[dict[str, Any]] = changes.gaps.to_pylist()
    assert [(row["first_sequence"], row["last_sequence"]) for row in recorded] == [(5, 9)]
    assert outcomes[0].gap_sequences == 5
