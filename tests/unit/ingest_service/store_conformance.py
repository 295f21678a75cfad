"""Conformance tests of a store; the test class of an implementation inherits them."""

import contextlib
import math
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sightline.types.v1.prediction_pb2 import CloudReason, Prediction

from ingest_service.receive.group import Message, MessageOutcome
from ingest_service.receive.group_writer import GroupWriter
from ingest_service.store.protocol import (
    Filter,
    Generation,
    Maintenance,
    Position,
    PredictionStore,
    Reader,
    SpoolKey,
    Stats,
    StoredPrediction,
    Transaction,
)
from ingest_service.translate import stored_to_proto
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import (
    NOW,
    SPOOL,
    detection,
    gap,
    message,
    prediction,
    predictions,
    shapes,
    spool,
    timestamp,
)

ODD_TEXT = "é \N{SNOWMAN} ' \" \\ ; -- \0 \n %s $1"


class MovableClock:
    """A server clock that a test sets."""

    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time

    def tick(self) -> None:
        self.time += timedelta(seconds=1)


class BeforeCommit:
    """A wrapper of a store that calls a function before each COMMIT."""

    def __init__(self, store: PredictionStore, action: Callable[[], None]) -> None:
        self._store = store
        self._action = action

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._store.transaction() as transaction:
            yield transaction
            self._action()

    def reader(self) -> Reader:
        return self._store.reader()

    def probe(self) -> None:
        self._store.probe()

    def check(self) -> None:
        self._store.check()

    def maintenance(self) -> Maintenance:
        return self._store.maintenance()

    def close(self) -> None:
        self._store.close()


def commit(
    store: PredictionStore, *messages: Message, now: Callable[[], datetime] = lambda: NOW
) -> None:
    """Commit a group, and assert that no message fails."""
    for outcome in outcomes_of(GroupWriter(store, now), messages):
        assert outcome.error is None


def outcomes_of(writer: GroupWriter, messages: Sequence[Message]) -> Sequence[MessageOutcome]:
    return writer.commit(writer.prepare(messages))


def everything(store: PredictionStore, filter_: Filter | None = None) -> list[StoredPrediction]:
    return page(store, 10_000, filter_=filter_)


def page(
    store: PredictionStore, size: int, after: Position | None = None, filter_: Filter | None = None
) -> list[StoredPrediction]:
    reader = store.reader()
    try:
        return reader.page(filter_ or Filter(), size, after)
    finally:
        reader.close()


def stats(store: PredictionStore, filter_: Filter | None = None) -> Stats:
    reader = store.reader()
    try:
        return reader.stats(filter_ or Filter())
    finally:
        reader.close()


def update_rollups(store: PredictionStore) -> None:
    """Update the rollups for everything that is committed, whatever its age."""
    store.maintenance().update_rollups(NOW, everything=True)


def watermark(store: PredictionStore, of: SpoolKey = SPOOL) -> int:
    reader = store.reader()
    try:
        return reader.watermark(of).through
    finally:
        reader.close()


def varied(seed: int, count: int) -> list[Prediction]:
    """Return predictions that differ in every field of a filter."""
    chance = random.Random(seed)
    return [
        prediction(
            sequence,
            model_name=chance.choice(("plates", "parts")),
            source=chance.choice((1, 2)),
            captured_at=timestamp(NOW - timedelta(minutes=chance.randrange(10))),
            inference_time=chance.choice((None, Duration(nanos=chance.randrange(10**9)))),
            defect_detected=chance.choice((None, True, False)),
            detections=[
                detection(
                    class_name=chance.choice(("pit", "scratch", "")),
                    confidence=chance.choice((0.25, 0.5, 0.75)),
                )
                for _ in range(chance.randrange(4))
            ],
        )
        for sequence in range(1, count + 1)
    ]


def matches(filter_: Filter, device: str, p: Prediction) -> bool:
    """Return True if a prediction matches: the filter in Python, to compare with the SQL."""
    results = [
        d
        for d in p.detections
        if (not filter_.class_names or d.class_name in filter_.class_names)
        and (filter_.min_confidence is None or d.confidence >= filter_.min_confidence)
    ]
    captured = p.captured_at.ToDatetime(tzinfo=UTC)
    verdict = p.defect_detected if p.HasField("defect_detected") else None
    source = {1: "device", 2: "cloud"}[p.source]
    return (
        (not filter_.device_ids or device in filter_.device_ids)
        and (not filter_.model_names or p.model_name in filter_.model_names)
        and (filter_.defect_detected is None or verdict == filter_.defect_detected)
        and filter_.source in (None, source)
        and (filter_.start_time is None or captured >= filter_.start_time)
        and (filter_.end_time is None or captured < filter_.end_time)
        and (bool(results) or (not filter_.class_names and filter_.min_confidence is None))
    )


FILTERS = [
    Filter(),
    Filter(device_ids=("gate-1",)),
    Filter(device_ids=("gate-1", "gate-2", "no such")),
    Filter(device_ids=("'; DROP TABLE predictions; --",)),
    Filter(model_names=("parts",)),
    Filter(class_names=("pit",)),
    Filter(class_names=("pit", "")),
    Filter(defect_detected=True),
    Filter(defect_detected=False),
    Filter(source="cloud"),
    Filter(min_confidence=0.0),
    Filter(min_confidence=0.5),
    Filter(class_names=("scratch",), min_confidence=0.75),
    Filter(start_time=NOW - timedelta(minutes=5)),
    Filter(end_time=NOW - timedelta(minutes=5)),
    Filter(start_time=NOW - timedelta(minutes=5), end_time=NOW - timedelta(minutes=5)),
    Filter(
        ("gate-2",), ("plates",), ("pit", "scratch"), True, "device", 0.25, NOW - timedelta(hours=1)
    ),
]


class PredictionStoreConformance:
    """The conformance tests. A subclass overrides `open_store` and `query`."""

    @pytest.fixture
    def open_store(self) -> Callable[[], PredictionStore]:
        """Return a function that opens the test's store; each call reopens the same store."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: Callable[[], PredictionStore]) -> Iterator[PredictionStore]:
        opened = open_store()
        yield opened
        opened.close()

    def query(self, store: PredictionStore, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the store's tables."""
        raise NotImplementedError

    def assert_balanced(self, store: PredictionStore) -> None:
        ledger = self.query(store, "SELECT * FROM ledger")
        assert ledger
        assert all(row[-1] is True for row in ledger), ledger

    # -- Writing

    def test_a_new_store_is_empty(self, store: PredictionStore) -> None:
        assert watermark(store) == 0
        assert everything(store) == []
        empty = stats(store)
        assert (empty.total_predictions, empty.total_detections, empty.rejected) == (0, 0, 0)
        assert (empty.by_device, empty.by_class, empty.inference_seconds) == ([], [], None)
        assert (empty.first_captured_us, empty.last_captured_us) == (None, None)
        assert self.query(store, "SELECT * FROM ledger") == []

    def test_a_prediction_comes_back_as_it_was_sent(self, store: PredictionStore) -> None:
        full = prediction(
            1,
            image_id=ODD_TEXT,
            image_width=640,
            image_height=480,
            model_version="1.2",
            source="PREDICTION_SOURCE_CLOUD",
            cloud_reason="CLOUD_REASON_DEVICE_UNSURE",
            inference_time=Duration(seconds=1, nanos=234_567_891),
            detections=[
                detection(track_id=-(2**63), class_name=ODD_TEXT),
                detection(box=None, confidence=1),
                *shapes(),
            ],
            defect_detected=False,
            labels={ODD_TEXT: ODD_TEXT, "": ""},
            trace_id="0123456789abcdef" * 2,
        )
        bare = prediction(2, detections=[])
        commit(store, message(full, bare))
        second, first = everything(store)
        assert stored_to_proto(first).prediction == full
        assert stored_to_proto(second).prediction == bare

    def test_positions_rejections_gaps_and_streams_are_kept(self, store: PredictionStore) -> None:
        declared = timestamp(NOW - timedelta(days=1))
        commit(
            store,
            message(
                prediction(1),
                prediction(2, detections=[detection(confidence=math.inf)]),
                gap(3, 5, declared_at=declared),
            ),
        )
        assert watermark(store) == 5
        assert self.query(
            store, "SELECT sequence, field, reason, original->>'image_id' FROM rejected_predictions"
        ) == [(2, "detections[0].confidence", "CONFIDENCE_OUT_OF_RANGE", "image-2")]
        assert self.query(
            store,
            "SELECT first_sequence, last_sequence, reason, epoch_us(declared_at) FROM gaps",
        ) == [(3, 5, "dropped_oldest", declared.ToMicroseconds())]
        assert self.query(
            store, "SELECT device_id, spool_id, clock_offset_seconds FROM streams"
        ) == [(*SPOOL, None)]
        assert self.query(store, "SELECT * EXCLUDE (device_id, spool_id) FROM ledger") == [
            (1, 1, 3, 5, 0, 0, True)
        ]

    def test_the_clock_offset_of_a_stream_is_stored_with_its_rows(
        self, store: PredictionStore
    ) -> None:
        opened = message(prediction(1)).opening
        behind = type(opened)(
            SPOOL, NOW, NOW - timedelta(days=9000, microseconds=1), timedelta(seconds=7.5), "test"
        )
        commit(store, message(prediction(1))._replace(opening=behind))
        (stored,) = everything(store)
        offset = stored_to_proto(stored).clock_offset.ToTimedelta()
        assert offset == timedelta(days=9000, microseconds=1)
        assert self.query(
            store,
            "SELECT epoch_us(device_time + to_seconds(clock_offset_seconds)) - epoch_us(opened_at),"
            " device_monotonic_seconds, client FROM streams",
        ) == [(0, 7.5, "test")]

    def test_what_was_committed_is_not_stored_again(self, store: PredictionStore) -> None:
        commit(store, message(*predictions(1, 4)))
        commit(store, message(*predictions(3, 6)), message(*predictions(1, 6), stream=1))
        assert [stored.position.sequence for stored in everything(store)] == [6, 5, 4, 3, 2, 1]
        assert watermark(store) == 6
        self.assert_balanced(store)
        assert self.query(store, "SELECT duplicates FROM ledger") == [(8,)]

    def test_spools_are_kept_apart(self, store: PredictionStore) -> None:
        again = SPOOL._replace(spool_id=spool(9).spool_id)
        commit(store, *(message(*predictions(1, 2), of=of) for of in (SPOOL, again, spool(2))))
        assert [watermark(store, of) for of in (SPOOL, again, spool(2), spool(3))] == [2, 2, 2, 0]
        assert len(everything(store)) == 6

    def test_the_largest_sequence_fits(self, store: PredictionStore) -> None:
        commit(store, message(gap(1, 2**63 - 2), prediction(2**63 - 1)))
        assert watermark(store) == 2**63 - 1
        self.assert_balanced(store)
        assert stats(store).gap_sequences == 2**63 - 2

    def test_gap_sequences_beyond_int64_are_reported_as_its_largest(
        self, store: PredictionStore
    ) -> None:
        commit(store, *(message(gap(1, 2**63 - 1), of=spool(n), stream=n) for n in (1, 2)))
        assert stats(store).gap_sequences == 2**63 - 1
        self.assert_balanced(store)

    def test_a_transaction_that_fails_leaves_nothing(self, store: PredictionStore) -> None:
        commit(store, message(*predictions(1, 2)))
        group = message(prediction(3), prediction(4, model_name=""), gap(5, 6))
        before = self.query(store, "SELECT * FROM ledger")

        def fail() -> None:
            raise RuntimeError("power")

        with pytest.raises(RuntimeError, match="power"):
            outcomes_of(GroupWriter(BeforeCommit(store, fail), lambda: NOW), [group])
        assert self.query(store, "SELECT * FROM ledger") == before
        assert watermark(store) == 2
        commit(store, group)
        assert watermark(store) == 6
        self.assert_balanced(store)

    def test_a_reader_sees_what_is_committed_and_nothing_else(self, store: PredictionStore) -> None:
        seen: list[int] = []
        look = BeforeCommit(store, lambda: seen.append(len(everything(store))))
        outcomes_of(GroupWriter(look, lambda: NOW), [message(*predictions(1, 3))])
        assert seen == [0]
        assert len(everything(store)) == 3

    def test_a_transaction_reads_the_watermarks_that_it_moves(self, store: PredictionStore) -> None:
        commit(store, message(*predictions(1, 3)))
        with store.transaction() as transaction:
            watermarks = transaction.watermarks([SPOOL, spool(2)])
            assert {key: watermark.through for key, watermark in watermarks.items()} == {
                SPOOL: 3,
                spool(2): 0,
            }
            assert transaction.watermarks([]) == {}

    def test_what_resends_are_compared_with_is_kept(
        self, open_store: Callable[[], PredictionStore]
    ) -> None:
        store = open_store()
        first, second = (str(uuid.UUID(int=number)) for number in (1, 2))
        commit(store, message(*predictions(1, 3), generation=first))
        commit(store, message(*predictions(4, 5), generation=second))
        with store.transaction() as transaction:
            known = transaction.watermarks([SPOOL])[SPOOL]
        assert known.generations == (Generation(first, 0), Generation(second, 3))
        assert None not in (known.first_digest, known.last_digest)
        store.close()
        store = open_store()
        reader = store.reader()
        assert reader.watermark(SPOOL) == known
        reader.close()
        with store.transaction() as transaction:
            assert transaction.watermarks([SPOOL])[SPOOL] == known
        for other in (
            message(prediction(1, image_id="x"), generation=first),
            message(prediction(5, image_id="x"), prediction(6), generation=second),
            message(prediction(5), prediction(6), generation=first),
        ):
            (outcome,) = outcomes_of(GroupWriter(store, lambda: NOW), [other])
            assert outcome.error is not None
            assert outcome.error.reason == "SEQUENCE_CONFLICT"
        assert watermark(store) == 5
        assert len(everything(store)) == 5
        self.assert_balanced(store)
        store.close()

    def test_everything_is_there_after_reopening(
        self, open_store: Callable[[], PredictionStore]
    ) -> None:
        store = open_store()
        commit(store, message(*predictions(1, 3), gap(4, 4), prediction(5, model_name="")))
        before = (everything(store), stats(store), self.query(store, "SELECT * FROM ledger"))
        store.close()
        store = open_store()
        assert (
            everything(store),
            stats(store),
            self.query(store, "SELECT * FROM ledger"),
        ) == before
        commit(store, message(prediction(5, model_name=""), prediction(6)))
        assert watermark(store) == 6
        self.assert_balanced(store)
        store.close()

    def test_closing_twice_is_closing_once(self, open_store: Callable[[], PredictionStore]) -> None:
        store = open_store()
        store.close()
        store.close()

    # -- Reading

    def logged(self, store: PredictionStore, *, sums: bool = False) -> list[tuple[str, Prediction]]:
        """Store varied predictions of three devices; return them with their devices.

        With `sums`, all but the last commits have rollups, in several blocks, some of them merged.
        """
        clock, logged = MovableClock(), []
        for number in (1, 2, 3):
            sent = varied(number, 40)
            for start in range(0, 40, 16):
                if sums:
                    update_rollups(store)
                commit(store, message(*sent[start : start + 16], of=spool(number)), now=clock)
                clock.tick()
            logged += [(spool(number).device_id, p) for p in sent]
        commit(store, message(prediction(41, model_name=""), gap(42, 50), of=spool(2)))
        return logged

    @pytest.mark.slow
    @pytest.mark.parametrize("sums", [False, True])
    def test_a_filter_finds_what_plain_python_finds(
        self, store: PredictionStore, sums: bool
    ) -> None:
        logged = self.logged(store, sums=sums)
        for filter_ in FILTERS:
            expected = {(name, p.sequence) for name, p in logged if matches(filter_, name, p)}
            results = [
                (p.position.device_id, p.position.sequence) for p in everything(store, filter_)
            ]
            assert set(results) == expected, filter_
            assert len(results) == len(expected), filter_

    @pytest.mark.parametrize("sums", [False, True])
    def test_statistics_are_those_of_plain_python(self, store: PredictionStore, sums: bool) -> None:
        logged = self.logged(store, sums=sums)
        for filter_ in FILTERS:
            chosen = [(name, p) for name, p in logged if matches(filter_, name, p)]
            assert_counts(stats(store, filter_), filter_, chosen)

    @pytest.mark.parametrize("sums", [False, True])
    def test_details_are_those_of_plain_python(self, store: PredictionStore, sums: bool) -> None:
        sent = varied(3, 60)
        for one in sent:
            if one.source == 2:  # the cloud
                one.cloud_reason = CloudReason.ValueType(1 + one.sequence % 3)
            if one.sequence % 5:
                one.labels["source"] = ("north", "south")[one.sequence % 2]
        commit(store, message(*sent, of=spool(1)))
        if sums:
            update_rollups(store)
        device = spool(1).device_id
        for which in FILTERS:
            chosen = [one for one in sent if matches(which, device, one)]
            with contextlib.closing(store.reader()) as reader:
                assert reader.stats(which).details is None
                got = reader.stats(which, details=True).details
            assert got is not None
            judged = [one for one in chosen if one.HasField("defect_detected")]
            assert got.with_verdict == len(judged)
            models = {one.model_name for one in chosen}
            assert got.verdicts["model_name"] == {
                name: sum(one.model_name == name for one in judged) for name in models
            }
            reasons = {1: "requested", 2: "device_failed", 3: "device_timeout"}
            by_reason = Counter(reasons[one.cloud_reason] for one in chosen if one.cloud_reason)
            assert {c.key: c.total for c in got.by_cloud_reason} == by_reason
            labels = [(one.labels["source"], one) for one in chosen if "source" in one.labels]
            assert {c.key: (c.total, c.defects, c.with_verdict) for c in got.by_source_label} == {
                label: (
                    sum(of == label for of, _ in labels),
                    sum(of == label and one.defect_detected for of, one in labels),
                    sum(of == label and one.HasField("defect_detected") for of, one in labels),
                )
                for label in {of for of, _ in labels}
            }

    def test_counts_come_most_first(self, store: PredictionStore) -> None:
        self.logged(store)
        got = stats(store)
        for counts in (got.by_device, got.by_model, got.by_class):
            totals = [count.total for count in counts]
            assert totals == sorted(totals, reverse=True)

    def test_quantiles_are_over_the_predictions_that_give_a_time(
        self, store: PredictionStore
    ) -> None:
        times = [Duration(nanos=n * 10_000_000) for n in range(1, 101)]
        sent = [prediction(n, inference_time=time) for n, time in enumerate(times, 1)]
        commit(store, message(*sent, prediction(101)))
        quantiles = stats(store).inference_seconds
        assert quantiles == pytest.approx((0.505, 0.9505, 0.9901))

    @pytest.mark.slow
    @pytest.mark.parametrize("sums", [False, True])
    def test_pages_come_newest_first_and_hold_each_prediction_once(
        self, store: PredictionStore, sums: bool
    ) -> None:
        logged = self.logged(store, sums=sums)
        results: list[Position] = []
        after = None
        while positions := [p.position for p in page(store, 7, after)]:
            results += positions
            after = positions[-1]
        assert results == sorted(results, reverse=True)
        assert len(results) == len(set(results)) == len(logged)

    def test_what_is_committed_meanwhile_does_not_move_the_pages(
        self, store: PredictionStore
    ) -> None:
        clock = MovableClock()
        commit(store, message(*predictions(1, 10)), now=clock)
        first = page(store, 4)
        clock.tick()
        commit(
            store,
            message(*predictions(11, 20)),
            message(*predictions(1, 5), of=spool(2)),
            now=clock,
        )
        second = page(store, 20, first[-1].position)
        sequences = [p.position.sequence for p in (*first, *second)]
        assert sequences == list(range(10, 0, -1))

    @pytest.mark.slow
    @given(chance=st.randoms(use_true_random=False))
    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    def test_sums_change_no_statistics(
        self, open_store: Callable[[], PredictionStore], chance: random.Random
    ) -> None:
        store = open_store()
        number = chance.randrange(10**9)  # a device that no other example has
        of = SpoolKey(f"gate-2-{number}", str(uuid.UUID(int=number)))
        sent = [p for seed in range(12) for p in scattered(chance, seed * 20 + 1, 20)]
        for start in range(0, len(sent), 20):
            commit(store, message(*sent[start : start + 20], of=of), now=lambda: NOW)
            if chance.random() < 0.8:
                update_rollups(store)
        for _ in range(10):
            filter_ = replace(any_filter(chance), device_ids=(of.device_id,))
            chosen = [(of.device_id, p) for p in sent if matches(filter_, of.device_id, p)]
            assert_counts(stats(store, filter_), filter_, chosen)
        store.close()

    # -- Maintenance

    @pytest.mark.slow
    def test_sums_are_merged_and_tell_the_same(
        self, open_store: Callable[[], PredictionStore]
    ) -> None:
        store, clock, logged = open_store(), MovableClock(), []
        for number in range(1, 31):
            sent = varied(number, 20)
            commit(store, message(*sent, of=spool(number)), now=clock)
            logged += [(spool(number).device_id, p) for p in sent]
            clock.tick()
            update_rollups(store)
        commit(store, message(prediction(21, model_name=""), gap(22, 30), of=spool(2)))
        ((blocks, predictions_),) = self.query(
            store, "SELECT count(*), sum(predictions) FROM blocks"
        )
        assert 1 < blocks < 10
        assert predictions_ == 30 * 20
        for filter_ in FILTERS:
            chosen = [(name, p) for name, p in logged if matches(filter_, name, p)]
            assert_counts(stats(store, filter_), filter_, chosen)
        store.close()

    def test_commits_have_times_of_their_own_though_the_clock_goes_back(
        self, open_store: Callable[[], PredictionStore]
    ) -> None:
        store = open_store()
        for back in range(3):
            commit(
                store,
                message(*predictions(back + 1, back + 1)),
                now=lambda: NOW - timedelta(hours=back),  # noqa: B023 - called at once
            )
            update_rollups(store)
        store.close()
        store = open_store()
        commit(store, message(prediction(4)), now=lambda: NOW - timedelta(hours=9))
        received = [p.position.received_us for p in everything(store)]
        assert received == sorted(set(received), reverse=True)
        assert stats(store).total_predictions == 4
        store.close()

    def test_what_is_old_is_deleted_and_the_books_stay_balanced(
        self, store: PredictionStore
    ) -> None:
        clock = MovableClock()
        for number in (1, 2, 3):
            start = 10 * number
            commit(
                store,
                message(*predictions(start - 9, start - 2), prediction(start - 1, model_name="")),
                message(gap(start, start), stream=1),
                now=clock,
            )
            update_rollups(store)
            clock.time += timedelta(days=1)
        maintenance = store.maintenance()
        before = NOW + timedelta(hours=36)
        assert maintenance.expire(before, exported_only=True) == 0, "nothing is exported"
        assert maintenance.expire(before, exported_only=False) == 16
        assert maintenance.expire(before, exported_only=False) == 0
        assert [p.position.sequence for p in everything(store)] == list(range(28, 20, -1))
        assert watermark(store) == 30
        ledger = self.query(store, "SELECT * EXCLUDE (device_id, spool_id) FROM ledger")
        assert ledger == [(24, 3, 3, 30, 0, 18, True)]
        got = stats(store)
        assert (got.total_predictions, got.rejected, got.gap_sequences) == (8, 1, 3)
        commit(store, message(*predictions(1, 31)), now=clock)
        assert watermark(store) == 31
        assert len(everything(store)) == 9, "what is deleted does not come again"
        self.assert_balanced(store)

    @pytest.mark.slow
    def test_each_prediction_is_exported_once(self, store: PredictionStore, tmp_path: Path) -> None:
        folder = tmp_path / "it's here"
        maintenance = store.maintenance()
        logged = []
        for first in range(1, 37, 3):  # blocks that are exported are merged with later ones
            for number in (1, 2):
                of = spool(number)
                commit(store, message(*predictions(first, first + 2), of=of))
                logged += [(of.device_id, sequence) for sequence in range(first, first + 3)]
            update_rollups(store)
            if first % 9 == 7:
                assert maintenance.export(folder, NOW) == 2
                assert maintenance.export(folder, NOW) == 0
        rows = exported(folder)
        assert sorted((row["device_id"], row["sequence"]) for row in rows) == sorted(logged)
        assert {
            path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")
        } == {f"day=2026-11-22/device_id=gate-{number}" for number in (1, 2)}
        assert maintenance.expire(NOW + timedelta(days=1), exported_only=True) == 72

    def test_an_interrupted_reader_fails(self, store: PredictionStore) -> None:
        reader = store.reader()
        reader.interrupt()
        with pytest.raises(SightlineError) as caught:
            reader.stats(Filter())
        assert caught.value.code.name == "CANCELLED"
        reader.close()
        assert stats(store).total_predictions == 0, "other readers go on"


def scattered(chance: random.Random, first: int, count: int) -> list[Prediction]:
    """Return varied predictions of these sequences, captured over some hours."""
    sent = varied(chance.randrange(10**9), count)
    for sequence, p in enumerate(sent, first):
        p.sequence = sequence
        p.captured_at.CopyFrom(timestamp(NOW - timedelta(minutes=chance.randrange(300))))
    return sent


def any_filter(chance: random.Random) -> Filter:
    """Return a filter with random conditions."""
    start, end = sorted(NOW - timedelta(minutes=chance.randrange(-10, 310)) for _ in range(2))
    return Filter(
        model_names=chance.choice(((), ("plates",), ("plates", "other"))),
        class_names=chance.choice(((), (), (), ("pit",), ("scratch", "pit"))),
        defect_detected=chance.choice((None, None, True, False)),
        source=chance.choice((None, None, "device", "cloud")),
        min_confidence=chance.choice((None, None, None, 0.5)),
        start_time=chance.choice((None, start)),
        end_time=chance.choice((None, end)),
    )


def exported(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of every Parquet file in a folder."""
    return [
        row for path in folder.rglob("*.parquet") for row in pq.ParquetFile(path).read().to_pylist()
    ]


def assert_counts(got: Stats, filter_: Filter, chosen: Sequence[tuple[str, Prediction]]) -> None:
    """Assert that the statistics are those of the chosen predictions."""
    alone = [p for _, p in chosen]
    assert got.total_predictions == len(chosen), filter_
    assert got.defects_detected == sum(p.defect_detected for p in alone), filter_
    assert got.total_detections == sum(len(p.detections) for p in alone), filter_
    assert sorted(got.by_device) == tally([device for device, _ in chosen], alone), filter_
    assert sorted(got.by_model) == tally([p.model_name for p in alone], alone), filter_
    sources = [("device", "cloud")[p.source - 1] for p in alone]
    assert sorted(got.by_source) == tally(sources, alone), filter_
    classes = [d.class_name for p in alone for d in p.detections]
    assert sorted(got.by_class) == sorted((n, classes.count(n), 0) for n in set(classes)), filter_
    captured = [p.captured_at.ToMicroseconds() for p in alone]
    assert got.first_captured_us == min(captured, default=None), filter_
    assert got.last_captured_us == max(captured, default=None), filter_
    times = [p.inference_time.ToNanoseconds() / 1e9 for p in alone if p.HasField("inference_time")]
    if times:
        expected = tuple(np.quantile(times, [0.5, 0.95, 0.99]))
        assert got.inference_seconds == pytest.approx(expected, rel=0.01), filter_
    else:
        assert got.inference_seconds is None, filter_
    if filter_.device_ids and filter_.device_ids[0].startswith("gate-2-"):
        return
    about_gate_2 = not filter_.device_ids or "gate-2" in filter_.device_ids
    assert (got.rejected, got.gap_sequences) == ((1, 9) if about_gate_2 else (0, 0)), filter_


def tally(keys: Sequence[str], alone: Sequence[Prediction]) -> list[tuple[str, int, int]]:
    pairs = list(zip(keys, alone, strict=True))
    return sorted(
        (key, keys.count(key), sum(p.defect_detected for name, p in pairs if name == key))
        for key in set(keys)
    )
