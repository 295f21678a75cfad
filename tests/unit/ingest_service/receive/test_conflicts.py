"""Items 12 and 13: another content under a committed sequence is refused, the same is not."""

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
from ingest_service.receive.group import Message, Outcome, prepare
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
class Books:
    """A store of one spool."""

    mark: Watermark = field(default_factory=Watermark)
    images: list[str] = field(default_factory=list)

    def take(self, *messages: Message) -> list[Outcome]:
        """Commits a group."""
        changes, outcomes = decide(prepare(messages, DECODER, NOW), {SPOOL: self.mark})
        self.images += changes.predictions.column("image_id").to_pylist()
        for row in changes.watermarks.to_pylist():
            self.mark = read_watermark(
                row["committed_through"],
                row["first_digest"],
                row["last_digest"],
                row["generations"] or self.mark.generations,
            )
        return list(outcomes)

    def said(self, *parts: Prediction | Gap, generation: str = "") -> str | int:
        """Returns the duplicates of a stream, or where and how it conflicts."""
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


def test_item_13_a_resend_that_passes_the_watermark_with_other_bytes_is_refused() -> None:
    books = Books()
    assert books.said(*predictions(1, 5)) == 0
    assert books.said(*predictions(3, 5)) == 3, "the same is a duplicate"
    assert books.said(*others(4, 8)) == "content 5"
    assert books.said(*predictions(4, 6)) == 2, "nothing of the other was taken"
    assert books.images == [f"image-{n}" for n in range(1, 7)]


def test_item_13_a_logger_that_restarts_at_1_is_refused_at_once() -> None:
    books = Books()
    books.said(*predictions(1, 500))
    assert books.said(*others(1, 20)) == "content 1"
    assert books.said(*predictions(1, 20)) == 20


def test_item_13_what_lies_between_the_first_and_the_last_cannot_be_compared() -> None:
    """As the documentation says."""
    books = Books()
    books.said(*predictions(1, 50))
    assert books.said(*others(10, 20)) == 11


def test_item_13_what_a_gap_covers_has_no_content() -> None:
    books = Books()
    books.said(gap(1, 3), *predictions(4, 5), gap(6, 9))
    assert books.mark.first_digest is None
    assert books.mark.last_digest is None
    assert books.said(*others(1, 9)) == 9


def test_item_13_the_content_is_compared_within_a_group_too() -> None:
    books = Books()
    first, second, third = books.take(
        message(*predictions(1, 4)),
        message(*others(4, 6), stream=1),
        message(*predictions(4, 5), stream=2),
    )
    assert first.error is None
    assert second.error is not None
    assert second.error.metadata["sequence"] == "4"
    assert (third.accepted, third.duplicates) == (1, 1)


def test_item_13_nothing_of_the_stream_is_stored_after_a_conflict() -> None:
    books = Books()
    books.said(*predictions(1, 4))
    refused, after = books.take(message(*others(4, 6)), message(*predictions(5, 6), first=False))
    assert refused.error is not None
    assert (after.accepted, after.duplicates) == (0, 0)
    assert books.mark.through == 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_item_13_resends_in_other_batches_are_the_same(size: int) -> None:
    chance, books, every = random.Random(size), Books(), predictions(1, 100)
    while books.mark.through < 100:
        start = chance.randint(max(0, books.mark.through - 10), books.mark.through)
        assert isinstance(books.said(*every[start : start + size]), int)
    assert books.images == [f"image-{n}" for n in range(1, 101)]


def test_item_12_one_opening_after_the_other_is_no_conflict() -> None:
    books = Books()
    assert books.said(*predictions(1, 3), generation=ONE) == 0
    assert books.said(*predictions(2, 5), generation=ONE) == 2
    assert books.said(*predictions(6, 8), generation=TWO) == 0
    assert books.said(*predictions(2, 4), generation=ONE) == 3, "a resend of what was before"
    assert books.said(gap(9, 12), generation=THREE) == 0
    assert books.mark.generations == (
        Generation(ONE, 0),
        Generation(TWO, 5),
        Generation(THREE, 8),
    )


def case(name: str, before: Callable[[Books], Any], parts: Parts, generation: str, at: int) -> Any:
    return pytest.param(before, parts, generation, at, id=name)


def two_openings(books: Books) -> None:
    books.said(*predictions(1, 5), generation=ONE)
    books.said(*predictions(6, 8), generation=TWO)


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
def test_item_12_what_another_opening_has_used_is_refused(
    before: Callable[[Books], Any], parts: Parts, generation: str, at: int
) -> None:
    books = Books()
    before(books)
    stored = list(books.images)
    assert books.said(*parts, generation=generation) == f"generation {at}"
    assert books.images == stored


def test_item_12_what_named_no_generation_belongs_to_nobody() -> None:
    """As what an older node has sent, or what came before this server kept generations."""
    books = Books()
    books.said(*predictions(1, 5))
    assert books.said(*predictions(3, 7), generation=ONE) == 3
    assert books.said(*predictions(6, 9)) == 2
    assert books.mark.generations == (
        Generation("", 0),
        Generation(ONE, 5),
        Generation("", 7),
    )


def test_item_12_a_bounded_number_of_generations_is_kept() -> None:
    books = Books()
    names = [str(uuid.UUID(int=number + 1)) for number in range(MAX_GENERATIONS + 5)]
    for number, name in enumerate(names, 1):
        assert books.said(prediction(number), generation=name) == 0
    assert len(books.mark.generations) == MAX_GENERATIONS
    assert books.mark.generations[0] == Generation("", 0)
    assert [run.id for run in books.mark.generations[1:]] == names[1 - MAX_GENERATIONS :]
