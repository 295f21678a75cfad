"""Items 12 and 13: another content for a committed sequence is refused, the same is not."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sightline.ingest.v1.ingest_pb2 import Gap
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive.conflicts import MAX_GENERATIONS
from ingest_service.receive.decision import decide
from ingest_service.receive.group import Message, MessageOutcome, prepare
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.store.duckdb.reader import read_watermark
from ingest_service.store.protocol import Generation, Watermark
from tests.unit.ingest_service.samples import (
    NOW,
    SPOOL,
    gap,
    message,
    prediction,
    predictions,
)

DECODER = PtarsDecoder()
ONE, TWO, THREE = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
Parts = list[Prediction | Gap]


@dataclass
class SpoolModel:
    """A store of one spool."""

    watermark: Watermark = field(default_factory=Watermark)
    images: list[str] = field(default_factory=list)

    def take(self, *messages: Message) -> list[MessageOutcome]:
        """Commit a group."""
        changes, outcomes = decide(prepare(messages, DECODER, NOW), {SPOOL: self.watermark})
        self.images += changes.predictions.column("image_id").to_pylist()
        for row in changes.watermarks.to_pylist():
            self.watermark = read_watermark(
                row["committed_through"],
                row["first_digest"],
                row["last_digest"],
                row["generations"] or self.watermark.generations,
            )
        return list(outcomes)

    def result(self, *parts: Prediction | Gap, generation: str = "") -> str | int:
        """Return the duplicates of a stream, or where and how it conflicts."""
        (outcome,) = self.take(message(*parts, generation=generation))
        if outcome.error is None:
            return outcome.duplicates
        assert outcome.error.code.name == "FAILED_PRECONDITION"
        assert outcome.error.reason == "SEQUENCE_CONFLICT"
        assert (outcome.accepted, outcome.duplicates) == (0, 0)
        assert not outcome.error.retryable
        return f"{outcome.error.metadata['kind']} {outcome.error.metadata['sequence']}"


def others(first: int, last: int) -> Parts:
    return [prediction(n, image_id=f"other-{n}") for n in range(first, last + 1)]


def test_a_resend_that_passes_the_watermark_with_other_bytes_is_refused() -> None:
    model = SpoolModel()
    assert model.result(*predictions(1, 5)) == 0
    assert model.result(*predictions(3, 5)) == 3, "the same is a duplicate"
    assert model.result(*others(4, 8)) == "content 5"
    assert model.result(*predictions(4, 6)) == 2, "nothing of the other was taken"
    assert model.images == [f"image-{n}" for n in range(1, 7)]


def test_a_logger_that_restarts_at_1_is_refused_at_once() -> None:
    model = SpoolModel()
    model.result(*predictions(1, 500))
    assert model.result(*others(1, 20)) == "content 1"
    assert model.result(*predictions(1, 20)) == 20


def test_what_lies_between_the_first_and_the_last_cannot_be_compared() -> None:
    """This limit is documented."""
    model = SpoolModel()
    model.result(*predictions(1, 50))
    assert model.result(*others(10, 20)) == 11


def test_what_a_gap_covers_has_no_content() -> None:
    model = SpoolModel()
    model.result(gap(1, 3), *predictions(4, 5), gap(6, 9))
    assert model.watermark.first_digest is None
    assert model.watermark.last_digest is None
    assert model.result(*others(1, 9)) == 9


def test_the_content_is_compared_within_a_group_too() -> None:
    model = SpoolModel()
    first, second, third = model.take(
        message(*predictions(1, 4)),
        message(*others(4, 6), stream=1),
        message(*predictions(4, 5), stream=2),
    )
    assert first.error is None
    assert second.error is not None
    assert second.error.metadata["sequence"] == "4"
    assert (third.accepted, third.duplicates) == (1, 1)


def test_nothing_of_the_stream_is_stored_after_a_conflict() -> None:
    model = SpoolModel()
    model.result(*predictions(1, 4))
    refused, after = model.take(message(*others(4, 6)), message(*predictions(5, 6), first=False))
    assert refused.error is not None
    assert (after.accepted, after.duplicates) == (0, 0)
    assert model.watermark.through == 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_resends_in_other_batches_are_the_same(size: int) -> None:
    chance, model, every = random.Random(size), SpoolModel(), predictions(1, 100)
    while model.watermark.through < 100:
        start = chance.randint(max(0, model.watermark.through - 10), model.watermark.through)
        assert isinstance(model.result(*every[start : start + size]), int)
    assert model.images == [f"image-{n}" for n in range(1, 101)]


def test_one_opening_after_the_other_is_no_conflict() -> None:
    model = SpoolModel()
    assert model.result(*predictions(1, 3), generation=ONE) == 0
    assert model.result(*predictions(2, 5), generation=ONE) == 2
    assert model.result(*predictions(6, 8), generation=TWO) == 0
    assert model.result(*predictions(2, 4), generation=ONE) == 3, "a resend of what was before"
    assert model.result(gap(9, 12), generation=THREE) == 0
    assert model.watermark.generations == (
        Generation(ONE, 0),
        Generation(TWO, 5),
        Generation(THREE, 8),
    )


def case(
    name: str, before: Callable[[SpoolModel], Any], parts: Parts, generation: str, at: int
) -> Any:
    return pytest.param(before, parts, generation, at, id=name)


def two_openings(model: SpoolModel) -> None:
    model.result(*predictions(1, 5), generation=ONE)
    model.result(*predictions(6, 8), generation=TWO)


@pytest.mark.parametrize(
    ("before", "parts", "generation", "at"),
    [
        case("a twin that was later", two_openings, others(6, 9), THREE, 6),
        case("below the watermark", two_openings, others(6, 7), THREE, 6),
        case("an opening that another followed", two_openings, others(9, 10), ONE, 9),
        case("and what it claims of that", two_openings, others(4, 7), ONE, 6),
        case("a gap of another opening", two_openings, [gap(7, 20)], THREE, 7),
        case("and below", two_openings, others(4, 9), TWO, 4),
    ],
)
def test_what_another_opening_has_used_is_refused(
    before: Callable[[SpoolModel], Any], parts: Parts, generation: str, at: int
) -> None:
    model = SpoolModel()
    before(model)
    stored = list(model.images)
    assert model.result(*parts, generation=generation) == f"generation {at}"
    assert model.images == stored


def test_what_named_no_generation_belongs_to_nobody() -> None:
    """For example from an older node, or committed before the server kept generations."""
    model = SpoolModel()
    model.result(*predictions(1, 5))
    assert model.result(*predictions(3, 7), generation=ONE) == 3
    assert model.result(*predictions(6, 9)) == 2
    assert model.watermark.generations == (
        Generation("", 0),
        Generation(ONE, 5),
        Generation("", 7),
    )


def test_a_bounded_number_of_generations_is_kept() -> None:
    model = SpoolModel()
    names = [str(uuid.UUID(int=number + 1)) for number in range(MAX_GENERATIONS + 5)]
    for number, name in enumerate(names, 1):
        assert model.result(prediction(number), generation=name) == 0
    assert len(model.watermark.generations) == MAX_GENERATIONS
    assert model.watermark.generations[0] == Generation("", 0)
    assert [run.id for run in model.watermark.generations[1:]] == names[1 - MAX_GENERATIONS :]
