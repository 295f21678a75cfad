"""Conformance tests of reading devices, the ledger, gaps and rejections from a store."""

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from ingest_service.receive.group import Message
from ingest_service.store.protocol import Filter, Position, PredictionStore, Reader, SpoolKey
from ingest_service.store.record_types import (
    Absence,
    DeviceRecord,
    FleetQuery,
    GapRecord,
    LedgerRecord,
    LossFilter,
    Place,
    RejectedRecord,
    StoredAt,
    StreamAccount,
)
from ingest_service.store.retention_clock import to_us
from tests.unit.ingest_service.samples import (
    NOW,
    detection,
    gap,
    message,
    opening,
    prediction,
    predictions,
    spool,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import (
    ODD_TEXT,
    MovableClock,
    commit,
    update_rollups,
)

T = TypeVar("T")
HOUR = timedelta(hours=1)
ACCOUNT = StreamAccount(7, 4096, 1.5, {"spool_bytes": 3, "reason_77": 2**62}, 9, 12.25)


def bad(sequence: int) -> Any:
    """Return a prediction that is rejected."""
    return prediction(sequence, detections=[detection(confidence=math.inf)])


def read(store: PredictionStore, query: Callable[[Reader], T]) -> T:
    with contextlib.closing(store.reader()) as reader:
        return query(reader)


def paged(
    store: PredictionStore,
    query: Callable[[Reader, Place | None], Sequence[T]],
    place: Callable[[T], Place],
) -> list[T]:
    """Return everything of a listing, page by page, each from a reader of its own."""
    rows: list[T] = []
    after: Place | None = None
    while page := read(store, lambda reader, start=after: query(reader, start)):  # type: ignore[misc]
        rows += page
        after = place(page[-1])
    return rows


def ledger(store: PredictionStore, *devices: str) -> tuple[list[LedgerRecord], LedgerRecord]:
    """Return the ledger in pages of two, and its total."""
    records = paged(
        store,
        lambda reader, after: reader.ledger(devices, 2, after)[0],
        lambda record: (record.updated_us or 0, record.device_id, record.spool_id, 0),
    )
    return records, read(store, lambda reader: reader.ledger(devices, 2, None))[1]


def devices(
    store: PredictionStore,
    *names: str,
    now: datetime = NOW,
    window: timedelta = timedelta(minutes=5),
) -> list[DeviceRecord]:
    """Return the devices in pages of two."""
    query = FleetQuery(names, now, window)
    return paged(
        store,
        lambda reader, after: reader.devices(query, 2, after),
        lambda record: (0, record.device_id, "", 0),
    )


def gaps(store: PredictionStore, filter_: LossFilter, size: int = 2) -> list[GapRecord]:
    return paged(
        store,
        lambda reader, after: reader.gaps(filter_, size, after),
        lambda row: (row.received_us, row.device_id, row.spool_id, row.first_sequence),
    )


def rejections(store: PredictionStore, filter_: LossFilter, size: int = 2) -> list[RejectedRecord]:
    return paged(
        store,
        lambda reader, after: reader.rejections(filter_, size, after),
        lambda row: (row.received_us, row.device_id, row.spool_id, row.sequence),
    )


def opened(of: SpoolKey, *parts: Any, stream: int = 0, **fields: Any) -> Message:
    """Return the first message of a stream whose opening has these fields."""
    return message(*parts, of=of, stream=stream)._replace(opening=opening(of, **fields))


def with_history(store: PredictionStore, clock: MovableClock, steps: int, seed: int) -> None:
    """Commit messages of several spools, with gaps, rejections and resends."""
    chance = random.Random(seed)
    reached = Counter[SpoolKey]()
    for _ in range(steps):
        of = chance.choice([spool(1), spool(2), SpoolKey("gate-1", spool(9).spool_id)])
        first = max(1, reached[of] + 1 - chance.choice((0, 0, 3)))
        parts: list[Any] = list(predictions(first, first + chance.randrange(1, 6)))
        reached[of] = first + len(parts) - 1
        if chance.random() < 0.5:
            parts[-1] = bad(reached[of])
        if chance.random() < 0.5:
            parts.append(gap(reached[of] + 1, reached[of] + 4, reason=chance.choice((1, 4, 77))))
            reached[of] += 4
        clock.time += timedelta(minutes=chance.randrange(1, 90))
        commit(store, message(*parts, of=of), now=clock)


class RecordConformance:
    """The conformance tests of records. A subclass also has `store` and `query`."""

    query: Callable[[PredictionStore, str], list[tuple[Any, ...]]]

    # -- The ledger

    def assert_ledger_is_the_view(self, store: PredictionStore) -> None:
        """Compare the ledger with the audit, which counts every row."""
        records, total = ledger(store)
        audit = self.query(
            store,
            "SELECT l.device_id, l.spool_id, accepted, l.rejected, gap_sequences::BIGINT,"
            " committed_through, duplicates, coalesce(e.predictions, 0), balanced"
            " FROM ledger AS l LEFT JOIN expired AS e USING (device_id, spool_id)",
        )
        found = [
            (
                *(r.device_id, r.spool_id, r.accepted, r.rejected, r.gap_sequences),
                *(r.committed_through, r.duplicates, r.expired, r.balanced),
            )
            for r in records
        ]
        assert sorted(found) == sorted(audit)
        assert all(row[-1] for row in audit)
        sums = [sum(row[column] for row in audit) for column in range(2, 8)]
        assert [
            *(total.accepted, total.rejected, total.gap_sequences),
            *(total.committed_through, total.duplicates, total.expired),
        ] == sums
        assert (total.device_id, total.spool_id, total.updated_us) == ("", "", None)
        assert total.balanced
        for record in (*records, total):
            assert sum(count for _, count in record.gaps_by_reason) == record.gap_sequences
        times = [record.updated_us or 0 for record in records]
        assert times == sorted(times, reverse=True)

    def test_the_ledger_of_an_empty_store(self, store: PredictionStore) -> None:
        records, total = ledger(store)
        assert records == []
        assert (total.accepted, total.committed_through, total.balanced) == (0, 0, True)
        assert devices(store) == []

    @pytest.mark.parametrize("seed", range(2))
    def test_the_ledger_agrees_with_the_audit_through_sums_and_retention(
        self, store: PredictionStore, seed: int
    ) -> None:
        clock = MovableClock()
        for _ in range(2):
            with_history(store, clock, 6, seed)
            self.assert_ledger_is_the_view(store)
            store.maintenance().update_rollups(clock.time)
            self.assert_ledger_is_the_view(store)
            store.maintenance().expire(clock.time - 3 * HOUR, exported_only=False)
            self.assert_ledger_is_the_view(store)
        assert self.query(store, "SELECT count(*) > 0 FROM expired WHERE predictions > 0") == [
            (True,)
        ]

    def test_the_ledger_of_named_devices(self, store: PredictionStore) -> None:
        commit(store, *(message(*predictions(1, n), of=spool(n)) for n in (1, 2, 3)))
        records, total = ledger(store, "gate-3", "gate-1", "no such")
        assert sorted((r.device_id, r.accepted) for r in records) == [("gate-1", 1), ("gate-3", 3)]
        assert total.accepted == 4

    def test_any_text_names_a_device(self, store: PredictionStore) -> None:
        odd = SpoolKey(ODD_TEXT + "\N{GRINNING FACE}\x1f\ufffe", spool(1).spool_id)
        commit(store, message(prediction(1), gap(2, 2), bad(3), of=odd))
        ((record,), total) = ledger(store, odd.device_id)
        assert record.device_id == odd.device_id
        assert (total.accepted, list(record.gaps_by_reason)) == (1, [("dropped_oldest", 1)])
        (device,) = devices(store, odd.device_id)
        assert (device.device_id, device.predictions, device.rejected) == (odd.device_id, 1, 1)
        wanted = LossFilter((odd.device_id, "x"))
        assert len(gaps(store, wanted)) == len(rejections(store, wanted)) == 1
        assert ledger(store, ODD_TEXT)[0] == []

    def test_the_ledger_counts_reasons_largest_first(self, store: PredictionStore) -> None:
        commit(
            store,
            message(
                gap(1, 2), gap(3, 9, reason=4), gap(10, 10, reason=77), bad(11), prediction(12)
            ),
        )
        ((record,), total) = ledger(store)
        expected = [("spool_age", 7), ("dropped_oldest", 2), ("reason_77", 1)]
        for account in (record, total):
            assert list(account.gaps_by_reason) == expected
            assert list(account.rejected_by_reason) == [("CONFIDENCE_OUT_OF_RANGE", 1)]

    def test_the_largest_numbers_do_not_overflow(self, store: PredictionStore) -> None:
        last = 2**63 - 1
        commit(store, *(message(gap(1, last), of=spool(number)) for number in (1, 2)))
        records, total = ledger(store)
        assert [record.gap_sequences for record in records] == [last, last]
        assert (total.committed_through, total.balanced) == (last, True)  # clipped
        assert [device.gap_sequences for device in devices(store)] == [last, last]

    # -- Gaps and rejections

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_gaps_and_rejections_are_listed_once_newest_first(
        self, store: PredictionStore, size: int
    ) -> None:
        with_history(store, MovableClock(), 12, 1)
        stored = self.query(
            store,
            "SELECT epoch_us(received_at), device_id, spool_id, first_sequence, last_sequence,"
            " reason, epoch_us(declared_at) FROM gaps"
            " ORDER BY received_at DESC, device_id DESC, spool_id DESC, first_sequence DESC",
        )
        assert gaps(store, LossFilter(), size) == stored
        rejected = self.query(
            store,
            "SELECT epoch_us(received_at), device_id, spool_id, sequence, field, reason,"
            " original::VARCHAR FROM rejected_predictions"
            " ORDER BY received_at DESC, device_id DESC, spool_id DESC, sequence DESC",
        )
        assert rejections(store, LossFilter(), size) == rejected
        assert len(stored) > 3
        assert len(rejected) > 3

    def test_gaps_and_rejections_of_a_device_and_a_reason(self, store: PredictionStore) -> None:
        for number in (1, 2):
            parts = (gap(1, 1), gap(2, 2, reason=77), bad(3), prediction(4, image_id=""))
            commit(store, message(*parts, of=spool(number)))
        wanted = LossFilter(("gate-2",), "reason_77")
        assert [(g.device_id, g.first_sequence) for g in gaps(store, wanted)] == [("gate-2", 2)]
        wanted = LossFilter(("gate-1",), "CONFIDENCE_OUT_OF_RANGE")
        assert [(r.device_id, r.sequence) for r in rejections(store, wanted)] == [("gate-1", 3)]
        assert gaps(store, LossFilter(("gate-9",))) == []
        assert rejections(store, LossFilter(reason="'; DROP TABLE gaps; --")) == []

    # -- One sequence

    def test_every_sequence_is_found_as_what_became_of_it(self, store: PredictionStore) -> None:
        of, clock = spool(1), MovableClock()
        commit(store, message(*predictions(1, 2), bad(3), gap(4, 6), of=of), now=clock)
        clock.time += 2 * HOUR
        last = 2**63 - 1
        commit(store, message(gap(7, last - 1), prediction(last), of=of), now=clock)
        commit(store, message(*predictions(1, 9), of=SpoolKey(of.device_id, spool(2).spool_id)))
        found = {n: read(store, lambda r, n=n: r.find(of, n)) for n in (1, 2, 3, 4, 6, 7, last)}  # type: ignore[misc]
        kinds = [type(found[n]) for n in found]
        assert kinds == [StoredAt] * 2 + [RejectedRecord] + [GapRecord] * 3 + [StoredAt]
        gap_found = found[6]
        assert isinstance(gap_found, GapRecord)
        assert (gap_found.first_sequence, gap_found.last_sequence) == (4, 6)
        stored = found[last]
        assert isinstance(stored, StoredAt)
        assert stored.received_us == to_us(clock.time)
        following = Position(stored.received_us, *of, last + 1)
        (row,) = read(store, lambda r: r.page(Filter(device_ids=(of.device_id,)), 1, following))
        assert row.position.sequence == last
        for unknown in (spool(3), SpoolKey("gate-9", of.spool_id)):
            assert read(store, lambda r, s=unknown: r.find(s, 1)) is Absence.NOT_COMMITTED  # type: ignore[misc]
        other = SpoolKey(of.device_id, spool(2).spool_id)
        assert read(store, lambda r: r.find(other, 10)) is Absence.NOT_COMMITTED

    def test_a_sequence_that_retention_deleted_is_expired(self, store: PredictionStore) -> None:
        clock = MovableClock()
        commit(store, message(prediction(1), bad(2), of=spool(1)), now=clock)
        clock.time += 2 * HOUR
        commit(store, message(prediction(3), of=spool(1)), now=clock)
        store.maintenance().update_rollups(clock.time)
        store.maintenance().expire(clock.time - HOUR, exported_only=False)
        found = [read(store, lambda r, n=n: r.find(spool(1), n)) for n in (1, 2, 3)]  # type: ignore[misc]
        assert found == [Absence.EXPIRED, Absence.EXPIRED, StoredAt(to_us(clock.time))]

    # -- Devices

    @pytest.mark.parametrize(
        ("seed", "window"), [(0, timedelta(minutes=1)), (1, timedelta(hours=5))]
    )
    def test_rates_and_hours_are_those_of_the_rows(
        self, store: PredictionStore, window: timedelta, seed: int
    ) -> None:
        chance, clock = random.Random(seed), MovableClock()
        reached = Counter[int]()
        for _ in range(15):
            clock.time += timedelta(seconds=chance.choice((7, 61, 3599, 5000)))
            number = chance.randrange(1, 4)
            count = chance.randrange(1, 5)
            captured = timestamp(clock.time - timedelta(hours=chance.randrange(30)))
            parts = [
                prediction(
                    reached[number] + n, captured_at=captured, defect_detected=chance.random() < 0.5
                )
                for n in range(1, count + 1)
            ]
            reached[number] += count
            commit(store, message(*parts, of=spool(number)), now=clock)
            if chance.random() < 0.4:
                store.maintenance().update_rollups(clock.time)
        now = clock.time + timedelta(seconds=20)
        self._compare(store, now, window)
        store.maintenance().update_rollups(now, everything=True)
        self._compare(store, now, window)
        store.maintenance().expire(now - 8 * HOUR, exported_only=False)
        self._compare(store, now, window)

    def _compare(self, store: PredictionStore, now: datetime, window: timedelta) -> None:
        rows = self.query(
            store,
            "SELECT device_id, epoch_us(received_at), epoch_us(captured_at), defect_detected"
            " FROM predictions",
        )
        found = devices(store, now=now, window=window)
        assert [device.device_id for device in found] == ["gate-1", "gate-2", "gate-3"]
        at, width, hour = to_us(now), window // timedelta(microseconds=1), 3600 * 10**6
        for device in found:
            own = [row[1:] for row in rows if row[0] == device.device_id]
            assert device.predictions == len(own)
            assert device.defects == sum(row[2] for row in own)
            ages = [at - received for received, _, _ in own]
            assert device.in_window == sum(age < width for age in ages)
            assert device.in_window_before == sum(width <= age < 2 * width for age in ages)
            hours = Counter(at // hour - captured // hour for _, captured, _ in own)
            assert list(device.by_hour) == [hours[ago] for ago in reversed(range(24))]

    def test_a_device_has_the_last_commit_of_all_its_spools(self, store: PredictionStore) -> None:
        clock = MovableClock()
        second = SpoolKey("gate-1", spool(2).spool_id)
        for of in (spool(1), second, spool(3)):
            clock.tick()
            commit(store, message(bad(1), gap(2, 4), of=of), now=clock)
        clock.tick()
        commit(store, message(of=spool(4)), now=clock)  # a header alone
        first, third, fourth = devices(store)
        assert (first.last_received_us, third.last_received_us, fourth.last_received_us) == (
            to_us(NOW + timedelta(seconds=2)),
            to_us(NOW + timedelta(seconds=3)),
            None,
        )
        assert (first.rejected, first.gap_sequences, first.predictions) == (2, 6, 0)
        assert [device.device_id for device in devices(store, "gate-3", "x")] == ["gate-3"]

    def test_the_last_stream_of_a_device_is_known_at_once_and_stays(
        self, store: PredictionStore, open_store: Callable[[], PredictionStore]
    ) -> None:
        behind: dict[str, Any] = {"device_time": NOW - timedelta(seconds=3), "client": "camera/2"}
        commit(store, opened(spool(1), prediction(1), account=ACCOUNT))
        commit(
            store,
            opened(spool(1), prediction(2), opened_at=NOW + HOUR, **behind),
            opened(spool(2), stream=1, client="camera/1"),
        )
        for step in range(3):
            first, second = devices(store)
            assert first.stream is not None
            assert second.stream is not None
            assert first.stream == (to_us(NOW + HOUR), 3603.0, "camera/2", None)
            assert second.stream == (to_us(NOW), None, "camera/1", None)
            if step == 0:
                update_rollups(store)
            if step == 1:
                store.close()
                store = open_store()
        commit(store, opened(spool(2), account=ACCOUNT))
        for _ in range(2):
            _, second = devices(store)
            assert second.stream is not None
            assert second.stream.account == ACCOUNT
            store.close()  # without maintenance before
            store = open_store()
        store.close()

    def test_a_device_without_a_known_stream(self, store: PredictionStore) -> None:
        commit(store, message(prediction(1), of=spool(1), first=False))
        (device,) = devices(store)
        assert device.stream is None
