"""Conformance tests of a store: following its log, and its tables for SQL queries.

The test class of an implementation inherits them beside `PredictionStoreConformance`, from which
their fixture comes.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pyarrow as pa
import pytest

from ingest_service.store.protocol import Filter, News, Position, PredictionStore
from ingest_service.store.queried import LogTables
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import (
    NOW,
    message,
    prediction,
    predictions,
    shapes,
    spool,
)
from tests.unit.ingest_service.store_conformance import (
    FILTERS,
    MovableClock,
    commit,
    everything,
    update_rollups,
    varied,
)


def head(store: PredictionStore) -> Position:
    with contextlib.closing(store.reader()) as reader:
        return reader.head()


def news(
    store: PredictionStore, after: Position, keep: int = 10_000, filter_: Filter | None = None
) -> News:
    with contextlib.closing(store.reader()) as reader:
        return reader.news(filter_ or Filter(), after, keep)


def is_deleted_after(store: PredictionStore, position: Position) -> bool:
    with contextlib.closing(store.reader()) as reader:
        return reader.is_deleted_after(position)


def oldest_first(store: PredictionStore, filter_: Filter | None = None) -> list[Position]:
    return [stored.position for stored in reversed(everything(store, filter_))]


@contextlib.contextmanager
def tables_of(store: PredictionStore) -> Iterator[LogTables]:
    with contextlib.closing(store.reader()) as reader:
        yield reader.log_tables()


def rows_of(tables: LogTables, table: str, columns: Sequence[str]) -> list[dict[str, object]]:
    parts = tables.parts(table, times=False).num_rows
    read = [tables.read(table, columns, part).read_all() for part in range(parts)]
    return [row for rows in read for row in rows.to_pylist()]


class FollowConformance:
    """The conformance tests."""

    # -- Following the log

    def test_nothing_is_new_at_the_head(self, store: PredictionStore) -> None:
        for last in (0, 3):
            if last:
                commit(store, message(*predictions(1, last)))
            at = head(store)
            assert news(store, at) == News(at, 0, [], more=False)

    def test_the_newest_are_chosen_and_all_are_counted(self, store: PredictionStore) -> None:
        commit(store, message(*predictions(1, 2)))
        after = head(store)
        commit(store, message(*predictions(3, 7)))
        commit(store, message(*predictions(1, 5), of=spool(2), stream=1))
        found = news(store, after, keep=7)
        assert (found.matching, found.more) == (10, False)
        assert found.newest == oldest_first(store)[-7:]
        assert found.upto == head(store)
        assert news(store, after, keep=0)._replace(upto=after) == News(after, 10, [], more=False)

    @pytest.mark.parametrize("sealed", [False, True])
    def test_from_every_position_on_there_is_no_hole_and_no_double(
        self, store: PredictionStore, sealed: bool
    ) -> None:
        """Commits that are one microsecond apart, as after the clock was set back."""
        start = head(store)
        for number in range(1, 4):
            commit(store, message(*predictions(1, 3), of=spool(number), stream=number))
        if sealed:
            update_rollups(store)
        all_of = oldest_first(store)
        times = [position.received_us for position in all_of]
        assert times[-1] - times[0] == 2
        for index, position in enumerate(all_of):
            assert news(store, position).newest == all_of[index + 1 :]
        assert news(store, start).newest == all_of

    def test_steps_end_between_commits(
        self, store: PredictionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ingest_service.store.duckdb.news.STEP_ROWS", 4)
        at, found = head(store), list[Position]()
        for number in range(1, 6):
            commit(store, message(*predictions(1, 3), of=spool(number), stream=number))
            update_rollups(store)
        more, steps = True, 0
        while more:
            step = news(store, at)
            found += step.newest
            at, more, steps = step.upto, step.more, steps + 1
        assert found == oldest_first(store)
        assert at == head(store)

    @pytest.mark.parametrize("filter_", FILTERS)
    def test_news_are_those_of_the_filter(self, store: PredictionStore, filter_: Filter) -> None:
        start, clock = head(store), MovableClock()
        for number in (1, 2):
            rows = varied(number, 30)
            commit(store, message(*rows, of=spool(number), stream=number), now=clock)
            clock.tick()
        found = news(store, start, filter_=filter_)
        assert found.newest == oldest_first(store, filter_)
        assert found.matching == len(found.newest)

    def test_predictions_are_found_at_their_positions(self, store: PredictionStore) -> None:
        for number in range(1, 4):
            rows = [prediction(n, detections=shapes()) for n in range(1, 6)]
            commit(store, message(*rows, of=spool(number), stream=number))
        whole = everything(store)[::-1]
        chosen = [whole[n] for n in (0, 4, 7, 8, 13)]
        gone = whole[-1].position._replace(sequence=99)
        with contextlib.closing(store.reader()) as reader:
            assert reader.at([row.position for row in chosen]) == chosen
            assert reader.at([whole[2].position, gone]) == [whole[2]]
            assert reader.at([gone]) == []

    def test_what_retention_deleted_after_a_position_is_noticed(
        self, store: PredictionStore
    ) -> None:
        start, clock, maintenance = head(store), MovableClock(), store.maintenance()
        ends = []
        for number in range(1, 4):
            commit(store, message(*predictions(1, 4), of=spool(number), stream=number), now=clock)
            ends.append(head(store))
            clock.time += timedelta(hours=2)
            maintenance.update_rollups(clock.time, everything=True)
        assert not any(is_deleted_after(store, position) for position in (start, *ends))
        assert maintenance.expire(NOW + timedelta(hours=1), exported_only=False) == 4
        assert [is_deleted_after(store, p) for p in (start, *ends)] == [True, False, False, False]
        assert maintenance.expire(NOW + timedelta(hours=9), exported_only=False) == 8
        assert [is_deleted_after(store, p) for p in (start, *ends)] == [True, True, True, False]

    # -- Tables for SQL queries

    def test_the_parts_of_a_table_are_its_rows(
        self, store: PredictionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ingest_service.store.duckdb.log_tables.PART_ROWS", 7)
        commit(store, message(*predictions(1, 40)))
        with tables_of(store) as tables:
            commit(store, message(*predictions(41, 50)))  # after the snapshot
            assert tables.parts("predictions", times=False).num_rows == 6
            rows = rows_of(tables, "predictions", ["sequence", "image_id"])
            expected = [{"sequence": n, "image_id": f"image-{n}"} for n in range(1, 41)]
            assert sorted(rows, key=lambda row: str(row)) == sorted(expected, key=str)
            assert rows_of(tables, "gaps", ["reason"]) == []

    def test_parts_tell_their_times(self, store: PredictionStore) -> None:
        commit(store, message(*predictions(1, 3)))
        with tables_of(store) as tables:
            (part,) = tables.parts("predictions", times=True).to_pylist()
        assert part["received_at_min"] == part["received_at_max"] == NOW
        assert part["captured_at_min"] == part["captured_at_max"] == NOW - timedelta(seconds=1)

    def test_the_snapshot_outlives_deletion(
        self, store: PredictionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ingest_service.store.duckdb.log_tables.PART_ROWS", 5)
        commit(store, message(*predictions(1, 12)))
        maintenance, chance = store.maintenance(), random.Random(3)
        maintenance.update_rollups(NOW, everything=True)
        with tables_of(store) as tables:
            parts = list(range(tables.parts("predictions", times=False).num_rows))
            assert maintenance.expire(NOW + timedelta(days=1), exported_only=False) == 12
            commit(store, message(*predictions(13, 20)))
            store.probe()
            chance.shuffle(parts)
            read = [tables.read("predictions", ["sequence"], part).read_all() for part in parts]
        assert sorted(pa.concat_tables(read)["sequence"].to_pylist()) == list(range(1, 13))

    def test_what_is_no_table_column_or_part_is_refused(self, store: PredictionStore) -> None:
        commit(store, message(*predictions(1, 3)))
        with tables_of(store) as tables:
            assert {"predictions", "gaps", "rejected_predictions"} <= set(tables.schemas())
            assert any("VIEW ledger" in view for view in tables.views())
            tables.parts("predictions", times=False)
            for table, columns, part in (
                ("sqlite_master", ["name"], 0),
                ("predictions", ["1 FROM gaps --"], 0),
                ("predictions", [], 0),
                ("predictions", ["sequence"], 1),
                ("gaps", ["reason"], 0),
            ):
                with pytest.raises(SightlineError):
                    tables.read(table, columns, part)
