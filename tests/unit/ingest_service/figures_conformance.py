"""Conformance tests of figures from a store: over time, on the frame, by confidence, by version."""

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from ingest_service.store.figures import (
    MAX_CONFIDENCE_CLASSES,
    MAX_FRAME_CLASSES,
    MAX_SERIES_CLASSES,
    Hours,
)
from ingest_service.store.protocol import Filter, PredictionStore, Reader
from servicekit.errors import SightlineError
from tests.unit.ingest_service import naive_figures as naive
from tests.unit.ingest_service.naive_figures import Logged
from tests.unit.ingest_service.samples import NOW, detection, message, prediction, spool
from tests.unit.ingest_service.store_conformance import (
    MovableClock,
    commit,
    everything,
    matches,
    update_rollups,
)

T = TypeVar("T")
HOUR = timedelta(hours=1)
HOUR_US = 3600 * 10**6
DEVICES = ("gate-1", "gate-2")
RANGES: tuple[dict[str, Any], ...] = (
    {},
    {"start_time": NOW - 3 * HOUR, "end_time": NOW - HOUR},
    {"start_time": NOW - timedelta(minutes=200), "end_time": NOW - timedelta(minutes=30)},
)
CONDITIONS = (
    Filter(),
    Filter(device_ids=("gate-1",), source="cloud"),
    Filter(model_names=("parts",), defect_detected=False),
    Filter(device_ids=("nobody",)),
)
OF_DETECTIONS = (Filter(class_names=("pit",)), Filter(class_names=("", "pit"), min_confidence=0.6))
FILTERS = [
    replace(filter_, **RANGES[at % len(RANGES)])
    for at, filter_ in enumerate((Filter(), Filter(), *CONDITIONS, *OF_DETECTIONS))
]


def read(store: PredictionStore, query: Callable[[Reader], T]) -> T:
    with contextlib.closing(store.reader()) as reader:
        return query(reader)


def chosen(logged: Logged, filter_: Filter) -> Logged:
    return [(device, p) for device, p in logged if matches(filter_, device, p)]


def log_figures(
    store: PredictionStore, seed: int, *, sums: bool, groups: int = 12
) -> tuple[Logged, MovableClock]:
    """Commit groups of scattered predictions, with `sums` mostly in blocks, some of them merged."""
    chance, clock, logged = random.Random(seed), MovableClock(), []
    for group in range(groups):
        device = 1 + group % 2
        sent = naive.scattered_figures(chance, 1 + group // 2 * 15, 15)
        commit(store, message(*sent, of=spool(device)), now=clock)
        logged += [(spool(device).device_id, p) for p in sent]
        clock.time += timedelta(minutes=chance.choice((1, 1, 1, 50)))
        if sums and group < groups - 1:
            update_rollups(store)
    return logged, clock


def assert_series(store: PredictionStore, logged: Logged, filter_: Filter, bucket_us: int) -> None:
    got = read(store, lambda reader: reader.series(filter_, bucket_us)).parts
    slots = naive.series_of((p for _, p in chosen(logged, filter_)), bucket_us)
    assert got.keys() == slots.keys(), filter_
    for slot, alone in slots.items():
        part = got[slot]
        assert part.tally == naive.tally_of(alone), (filter_, slot)
        assert part.by_cloud_reason == naive.reasons_of(alone), (filter_, slot)
        assert part.by_class == naive.classes_of(alone), (filter_, slot)
        assert list(part.by_class.values()) == sorted(part.by_class.values(), reverse=True)
        assert_quantiles(part.inference_seconds, naive.quantiles_of(alone))


def assert_quantiles(got: Any, expected: Any) -> None:
    assert (got is None) == (expected is None)
    if expected is not None:
        assert got == pytest.approx(expected, rel=0.01)


def assert_confidences(store: PredictionStore, logged: Logged, filter_: Filter) -> None:
    now = replace(filter_, start_time=NOW - 2 * HOUR, end_time=NOW)
    hours = Hours(NOW - 4 * HOUR, NOW - 2 * HOUR)
    got = read(store, lambda reader: reader.confidences(now, hours))
    before = replace(now, start_time=hours.start, end_time=hours.end)
    sides = [
        [p for _, p in chosen(logged, replace(side, class_names=()))] for side in (now, before)
    ]
    for p in (p for side in sides for p in side) if filter_.class_names else ():
        kept = [d for d in p.detections if d.class_name in filter_.class_names]
        del p.detections[:]
        p.detections.extend(kept)
    everything_, by_class = naive.confidences_of(*sides)
    assert got.everything == everything_, filter_
    assert list(got.by_class.items()) == by_class, filter_


def assert_versions(store: PredictionStore, logged: Logged, filter_: Filter) -> None:
    got = read(store, lambda reader: reader.model_versions(filter_))
    expected = naive.versions_of(chosen(logged, filter_))
    assert [replace(v, inference_seconds=None) for v in got] == [v for v, _ in expected], filter_
    for version, (_, quantiles) in zip(got, expected, strict=True):
        assert_quantiles(version.inference_seconds, quantiles)


def assert_figures(store: PredictionStore, logged: Logged) -> None:
    """Compare every figure that comes from sums with plain Python."""
    for filter_ in FILTERS:
        assert_series(store, logged, filter_, HOUR_US)
        assert_versions(store, logged, filter_)
    copies = [(device, type(p).FromString(p.SerializeToString())) for device, p in logged]
    assert_series(store, logged, Filter(), 2 * HOUR_US)
    for filter_ in (*CONDITIONS[1:], Filter(class_names=("pit", "none"))):
        assert_confidences(store, copies, filter_)


class FiguresConformance:
    """The conformance tests. The test class of a store inherits them beside the others."""

    @pytest.mark.parametrize(
        "sums", [pytest.param(True, marks=pytest.mark.slow), False], ids=["sums", "rows"]
    )
    def test_figures_are_those_of_plain_python(self, store: PredictionStore, sums: bool) -> None:
        logged, _ = log_figures(store, 5, sums=sums)
        assert_figures(store, logged)

    @pytest.mark.slow
    def test_figures_are_of_what_retention_has_left(self, store: PredictionStore) -> None:
        logged, clock = log_figures(store, 1, sums=True, groups=24)
        before = clock.time - timedelta(minutes=100)
        assert store.maintenance().expire(before, exported_only=False) > 0
        left = {(p.position.device_id, p.position.sequence) for p in everything(store)}
        remaining = [(device, p) for device, p in logged if (device, p.sequence) in left]
        assert 0 < len(remaining) < len(logged)
        assert_figures(store, remaining)

    def test_short_buckets_are_those_of_plain_python(self, store: PredictionStore) -> None:
        logged, _ = log_figures(store, 6, sums=True, groups=6)
        for filter_ in (Filter(), FILTERS[4], OF_DETECTIONS[1]):
            assert_series(store, logged, filter_, 60 * 10**6)

    def test_boxes_are_counted_in_the_cell_of_their_centre(self, store: PredictionStore) -> None:
        logged, _ = log_figures(store, 7, sums=True, groups=6)
        for filter_ in FILTERS:
            for columns, rows in ((32, 18), (1, 1), (3, 64)):
                got = read(store, lambda r: r.frame(filter_, columns, rows))  # noqa: B023
                alone = [p for _, p in chosen(logged, filter_)]
                expected = naive.frame_of(alone, columns, rows)
                assert got == expected, filter_
                assert list(got.by_class) == list(expected.by_class)

    def test_a_large_range_is_sampled_with_a_known_share(self, store: PredictionStore) -> None:
        for first in range(1, 20_001, 2_500):
            sent = [
                prediction(n, image_width=64, image_height=64) for n in range(first, first + 2_500)
            ]
            commit(store, message(*sent))
        whole = read(store, lambda r: r.frame(Filter(), 2, 2))
        assert (whole.predictions, whole.sampled) == (20_000, 1.0)
        update_rollups(store)
        for filter_ in (Filter(), Filter(class_names=("scratch",), min_confidence=0.5)):
            part = read(store, lambda r: r.frame(filter_, 2, 2, at_most=10_000))  # noqa: B023
            assert part == read(store, lambda r: r.frame(filter_, 2, 2, at_most=10_000))  # noqa: B023
            assert part.sampled == 0.5
            assert 0 < part.predictions < 20_000
            assert sum(map(sum, part.by_class.values())) == part.predictions

    @pytest.mark.parametrize("sums", [False, True])
    def test_only_the_largest_classes_are_listed(self, store: PredictionStore, sums: bool) -> None:
        count = MAX_CONFIDENCE_CLASSES + 3
        sent = [
            prediction(
                n,
                image_width=9,
                image_height=9,
                detections=[detection(class_name=f"c{k:03}") for k in range(count - n)],
            )
            for n in range(1, count)
        ]
        commit(store, message(*sent))
        if sums:
            update_rollups(store)
        series = read(store, lambda r: r.series(Filter(), HOUR_US)).parts
        frame = read(store, lambda r: r.frame(Filter(), 2, 2)).by_class
        now = Filter(start_time=NOW - HOUR, end_time=NOW)
        hours = Hours(NOW - 2 * HOUR, NOW - HOUR)
        confidences = read(store, lambda r: r.confidences(now, hours))
        names = [f"c{k:03}" for k in range(count)]
        (part,) = series.values()
        assert list(part.by_class) == names[:MAX_SERIES_CLASSES]
        assert list(frame) == names[:MAX_FRAME_CLASSES]
        assert list(confidences.by_class) == names[:MAX_CONFIDENCE_CLASSES]
        every = sum(len(p.detections) for p in sent)
        assert sum(confidences.everything.current) == every
        assert part.tally.detections == every

    def test_a_series_tells_the_newest_commit_of_its_devices(self, store: PredictionStore) -> None:
        clock = MovableClock()
        assert read(store, lambda r: r.series(Filter(), HOUR_US)).as_of_us is None
        for number in (1, 2):
            commit(store, message(prediction(1), of=spool(number)), now=clock)
            clock.tick()
        received = {p.position.device_id: p.position.received_us for p in everything(store)}
        for device, expected in ((), received["gate-2"]), (("gate-1",), received["gate-1"]):
            series = read(store, lambda r: r.series(Filter(device_ids=device), HOUR_US))  # noqa: B023
            assert series.as_of_us == expected
        nobody = read(store, lambda r: r.series(Filter(device_ids=("nobody",)), HOUR_US))
        assert (nobody.parts, nobody.as_of_us) == ({}, None)

    @pytest.mark.parametrize(
        "query",
        [
            lambda r: r.series(Filter(), HOUR_US),
            lambda r: r.series(Filter(), 60 * 10**6),
            lambda r: r.frame(Filter(), 4, 4),
            lambda r: r.confidences(
                Filter(start_time=NOW - HOUR, end_time=NOW), Hours(NOW - 2 * HOUR, NOW - HOUR)
            ),
            lambda r: r.model_versions(Filter()),
        ],
    )
    def test_figures_are_of_one_snapshot_and_are_interrupted(
        self, store: PredictionStore, query: Callable[[Reader], Any]
    ) -> None:
        commit(store, message(prediction(1)))
        with contextlib.closing(store.reader()) as reader:
            before = query(reader)
            commit(store, message(prediction(2)))
            update_rollups(store)
            assert query(reader) == before
            reader.interrupt()
            with pytest.raises(SightlineError) as caught:
                query(reader)
        assert caught.value.code.name == "CANCELLED"
        assert read(store, query) != before
