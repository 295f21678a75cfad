"""Spool files: sequences, gaps, and what is read of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sightline.types.v1 import prediction_pb2

from edge.spool.entries import Dropped, Gap, GapReason, Row
from edge.spool.file import SpoolFile
from edge.spool.rows import merge
from tests.unit.edge.spool.spool_files import ALL, body, fill, names, opened


def test_sequences_count_from_one_without_holes(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", Dropped(2, GapReason.DROPPED_NEWEST), "b")
    fill(file, "c")
    assert names(file) == ["1:a", "2-3 DROPPED_NEWEST", "4:b", "5:c"]
    assert file.identity.last == 5


def test_everything_is_there_when_opened_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b", "c", Dropped(1, GapReason.DROPPED_OLDEST))
    with file.transaction():
        file.acknowledge(2)
    identity = file.identity
    file.close()
    file = opened(tmp_path)
    assert file.identity == identity
    assert names(file, 2) == ["3:c", "4-4 DROPPED_OLDEST"]
    fill(file, "d")
    assert names(file, 4) == ["5:d"]


def test_what_is_acknowledged_is_gone_and_its_sequences_are_not_used_again(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b")
    with file.transaction(durable=False):
        assert file.acknowledge(2) == 2
    file.close()
    file = opened(tmp_path)
    fill(file, "c")
    assert names(file, 2) == ["3:c"]


def test_acknowledging_cuts_gaps(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, Dropped(5, GapReason.DROPPED_OLDEST), "a")
    with file.transaction():
        assert file.acknowledge(3) == 0
    assert names(file, 3) == ["4-5 DROPPED_OLDEST", "6:a"]


def test_a_failed_change_leaves_nothing(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a")
    before = file.identity

    def fail() -> None:
        with file.transaction():
            file.append([body("b"), Dropped(1, GapReason.SPOOL_AGE)], 0.0, 0.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.identity == before
    assert names(file) == ["1:a"]


def test_giving_up_keeps_what_is_a_gap_already(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b", Dropped(2, GapReason.DROPPED_NEWEST), "c", "d")
    with file.transaction():
        assert file.give_up(1, 5, GapReason.SPOOL_BYTES, 8.0) == 3
    assert names(file) == ["1-2 SPOOL_BYTES", "3-4 DROPPED_NEWEST", "5-5 SPOOL_BYTES", "6:d"]


def test_neighbouring_gaps_of_one_reason_are_one(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, *(str(number) for number in range(100)))
    for last in range(1, 100):
        with file.transaction():
            file.give_up(1, last, GapReason.SPOOL_BYTES, float(last))
    assert names(file) == ["1-99 SPOOL_BYTES", "100:99"]


def test_rewinding_owes_a_gap(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b", "c")
    with file.transaction():
        file.acknowledge(2)
    with file.transaction():
        file.rewind(0, 9.0)
    assert file.identity.acknowledged == 0
    assert names(file) == ["1-2 RELEASED", "3:c"]


@pytest.mark.parametrize("acknowledged", [0, 1, 3, 400])
def test_renewing_counts_from_one_again(tmp_path: Path, acknowledged: int) -> None:
    file = opened(tmp_path)
    fill(file, *(f"p{number}" for number in range(1, 501)), Dropped(2, GapReason.SPOOL_AGE), "z")
    with file.transaction():
        file.acknowledge(acknowledged)
    old = file.identity
    with file.transaction():
        file.renew()
    assert file.identity.spool_id != old.spool_id
    assert file.identity.pending == old.pending
    expected = [f"{n - acknowledged}:p{n}" for n in range(acknowledged + 1, 501)]
    gap = 501 - acknowledged
    assert names(file) == [*expected, f"{gap}-{gap + 1} SPOOL_AGE", f"{gap + 2}:z"]
    file.close()
    assert opened(tmp_path).identity.last == 503 - acknowledged


def test_reading_stops_at_entries_and_bytes(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, *(str(number) for number in range(10)))
    size = len(body("0")) + 2
    assert [e.sequence for e in file.read(0, 3, 1 << 20)[0]] == [1, 2, 3]
    assert [e.sequence for e in file.read(3, 100, 2 * size)[0]] == [4, 5]
    assert [e.sequence for e in file.read(5, 100, 1)[0]] == [6]
    assert file.read(10, 100, 1 << 20) == ([], [])


def test_what_is_too_old_and_what_is_too_much(tmp_path: Path) -> None:
    file = opened(tmp_path)
    fill(file, "a", "b", spooled_at=100.0)
    fill(file, "c", spooled_at=0.0)  # the clock was not set
    fill(file, "d", spooled_at=200.0)
    fill(file, "e", spooled_at=0.0)
    assert [file.expired(cutoff) for cutoff in (100.0, 150.0, 201.0)] == [0, 2, 4]
    size = len(body("a")) + 2
    assert [file.oldest(size_limit) for size_limit in (1, size, size + 1, 1000)] == [1, 1, 2, 5]


def test_space_goes_back_to_the_disk(tmp_path: Path) -> None:
    file = opened(tmp_path)
    with file.transaction():
        file.append([body("x" * 500)] * 4000, 0.0, 0.0)
    in_use, allocated = file.pages()
    assert in_use == allocated > 2_000_000
    with file.transaction():
        file.acknowledge(4000)
    assert file.pages()[0] < 100_000
    assert file.pages()[1] == allocated
    file.shrink(10_000)
    file.close()
    assert (tmp_path / "spool.db").stat().st_size < 100_000


ENTRIES = st.lists(
    st.binary(max_size=100)
    | st.builds(Dropped, st.integers(1, 5), st.sampled_from(list(GapReason))),
    max_size=12,
)
STEPS = st.lists(
    st.tuples(st.just("append"), ENTRIES)
    | st.tuples(st.sampled_from(["acknowledge", "give_up", "rewind"]), st.floats(0, 1))
    | st.tuples(st.just("renew"), st.none())
    | st.tuples(st.just("reopen"), st.none()),
    max_size=12,
)


@dataclass
class Model:
    """Return the pending entries by sequence: a body, or the reason of a gap."""

    pending: dict[int, bytes | GapReason] = field(default_factory=dict)
    acknowledged: int = 0
    last: int = 0

    def through(self, share: float) -> int:
        return self.acknowledged + round((self.last - self.acknowledged) * share)

    def rows(self, through: int) -> list[int]:
        return [n for n, what in self.pending.items() if n <= through and isinstance(what, bytes)]

    def append(self, file: SpoolFile, entries: list[bytes | Dropped]) -> None:
        file.append(entries, 1.0, 1.0)
        for entry in entries:
            for _ in range(entry.count if isinstance(entry, Dropped) else 1):
                self.last += 1
                self.pending[self.last] = entry.reason if isinstance(entry, Dropped) else entry

    def acknowledge(self, file: SpoolFile, share: float) -> None:
        through = self.through(share)
        assert file.acknowledge(through) == len(self.rows(through))
        self.pending = {n: what for n, what in self.pending.items() if n > through}
        self.acknowledged = through

    def give_up(self, file: SpoolFile, share: float) -> None:
        through, reason = self.through(share), GapReason.SPOOL_AGE
        rows = self.rows(through)
        if through > self.acknowledged:
            assert file.give_up(self.acknowledged + 1, through, reason, 1.0) == len(rows)
            self.pending |= dict.fromkeys(rows, reason)

    def rewind(self, file: SpoolFile, share: float) -> None:
        back = round(self.acknowledged * share)
        if back < self.acknowledged:
            file.rewind(back, 1.0)
            owed = range(back + 1, self.acknowledged + 1)
            self.pending |= dict.fromkeys(owed, GapReason.RELEASED)
            self.acknowledged = back

    def renew(self, file: SpoolFile, _: object) -> None:
        file.renew()
        self.pending = {n - self.acknowledged: what for n, what in self.pending.items()}
        self.last, self.acknowledged = self.last - self.acknowledged, 0

    def check(self, file: SpoolFile) -> None:
        assert _as_model(file, self.acknowledged) == self.pending
        assert file.identity.acknowledged == self.acknowledged
        assert file.identity.last == self.last


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]) -> None:
    folder, model = tmp_path_factory.mktemp("spool"), Model()
    file = opened(folder)
    for step, value in steps:
        if step == "reopen":
            file.close()
            file = opened(folder)
        else:
            with file.transaction():
                getattr(model, step)(file, value)
        model.check(file)
    file.close()


def _as_model(file: SpoolFile, after: int) -> dict[int, bytes | GapReason]:
    pending: dict[int, bytes | GapReason] = {}
    entries, missing = file.read(after, *ALL)
    assert missing == []
    for entry in entries:
        if isinstance(entry, Row):
            own = prediction_pb2.Prediction(sequence=entry.sequence).SerializeToString()
            assert entry.prediction.startswith(own)
            pending[entry.sequence] = entry.prediction.removeprefix(own)
        else:
            pending |= dict.fromkeys(range(entry.first, entry.last + 1), entry.reason)
    return pending


def row(sequence: int) -> Row:
    return Row(sequence, b"")


def gap(first: int, last: int) -> Gap:
    return Gap(first, last, GapReason.SPOOL_AGE, 0.0)


@pytest.mark.parametrize(
    ("rows", "gaps", "after", "through", "expected", "missing"),
    [
        ([1, 2], [], 0, 2, [1, 2], []),
        ([2], [(1, 1), (3, 9)], 0, 9, [(1, 1), 2, (3, 9)], []),
        ([1, 4], [], 0, 6, [1, 4], [(2, 3), (5, 6)]),
        ([], [], 3, 5, [], [(4, 5)]),
        ([5], [(1, 4)], 2, 5, [(3, 4), 5], []),
        ([1, 2, 3], [(2, 5)], 0, 5, [1, 2, (3, 5)], []),
        ([1], [(9, 12)], 0, 1, [1], []),
    ],
)
def test_rows_and_gaps_are_one_run(
    rows: list[int],
    gaps: list[tuple[int, int]],
    after: int,
    through: int,
    expected: list[int | tuple[int, int]],
    missing: list[tuple[int, int]],
) -> None:
    entries, runs = merge(after, through, [row(n) for n in rows], [gap(*run) for run in gaps])
    assert [(e.first, e.last) if isinstance(e, Gap) else e.sequence for e in entries] == expected
    assert runs == missing
