"""What every store of claims must do, run against each there is; and SQLite's own faults."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_service.idempotency import Outcome, Record, Store, StoreError
from inference_service.sqlite_store import SqliteStore

KEY, OTHER = b"k" * 32, b"o" * 32
PRINT = b"f" * 32
ANSWER = Outcome(ok=True, payload=b"answer \x00\xff")


@pytest.fixture(params=["file", "temporary"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    path = str(tmp_path / "claims.sqlite") if request.param == "file" else ""
    made = SqliteStore(path)
    yield made
    made.close()


def claim(
    store: Store, owner: bytes, *, now: float = 0.0, until: float = 10.0, key: bytes = KEY
) -> Record | None:
    return store.claim(key, fingerprint=PRINT, owner=owner, now=now, until=until)


def test_a_free_key_is_claimed_once(store: Store) -> None:
    assert claim(store, b"a") is None
    assert claim(store, b"b", until=20) == Record(PRINT, 10.0, None)
    assert claim(store, b"a", until=20) == Record(PRINT, 10.0, None)


def test_keys_do_not_touch_each_other(store: Store) -> None:
    assert claim(store, b"a") is None
    assert claim(store, b"a", key=OTHER) is None


@pytest.mark.parametrize("outcome", [ANSWER, Outcome(ok=False, payload=b""), Outcome(True, b"")])
def test_an_outcome_is_kept_as_it_is(store: Store, outcome: Outcome) -> None:
    claim(store, b"a")
    assert store.settle(KEY, owner=b"a", outcome=outcome, until=100)
    assert claim(store, b"b", now=99.9) == Record(PRINT, 100.0, outcome)


def test_an_outcome_is_forgotten_when_its_time_is_over(store: Store) -> None:
    claim(store, b"a")
    store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
    assert claim(store, b"b", now=100.0, until=110) is None
    assert claim(store, b"c", now=100.0) == Record(PRINT, 110.0, None)


def test_a_lease_that_ran_out_is_taken_over_and_the_zombie_changes_nothing(store: Store) -> None:
    claim(store, b"zombie", until=10)
    assert claim(store, b"heir", now=10.0, until=20) is None
    assert not store.settle(KEY, owner=b"zombie", outcome=ANSWER, until=100)
    store.release(KEY, owner=b"zombie")
    assert claim(store, b"c", now=11.0) == Record(PRINT, 20.0, None)
    assert store.settle(KEY, owner=b"heir", outcome=ANSWER, until=100)


def test_a_late_owner_may_settle_if_nobody_took_over(store: Store) -> None:
    claim(store, b"a", until=10)
    assert store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)


def test_an_outcome_cannot_be_replaced(store: Store) -> None:
    claim(store, b"a")
    store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
    assert not store.settle(KEY, owner=b"a", outcome=Outcome(False, b"other"), until=200)
    store.release(KEY, owner=b"a")
    assert claim(store, b"b") == Record(PRINT, 100.0, ANSWER)


def test_a_claim_that_never_was_cannot_be_settled(store: Store) -> None:
    assert not store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
    assert claim(store, b"b") is None


def test_a_released_key_is_free(store: Store) -> None:
    claim(store, b"a")
    store.release(KEY, owner=b"b")
    assert claim(store, b"b") is not None
    store.release(KEY, owner=b"a")
    assert claim(store, b"b") is None


def test_a_new_claim_brings_its_own_fingerprint(store: Store) -> None:
    claim(store, b"a", until=10)
    store.claim(KEY, fingerprint=b"new", owner=b"b", now=11, until=20)
    assert claim(store, b"c", now=11) == Record(b"new", 20.0, None)


def rows(store: SqliteStore) -> int:
    count: int = store._database.execute("SELECT count(*) FROM claims").fetchone()[0]
    return count


def test_claims_clear_away_what_is_over() -> None:
    store = SqliteStore("")
    for number in range(500):
        claim(store, b"a", key=number.to_bytes(32), now=number, until=number + 10)
    assert rows(store) <= 11
    store.close()


def test_a_burst_that_ran_out_is_cleared_bit_by_bit() -> None:
    store = SqliteStore("")
    for number in range(200):
        claim(store, b"a", key=number.to_bytes(32), until=10)
    for number in range(30):
        claim(store, b"a", key=(1000 + number).to_bytes(32), now=11, until=99)
    assert rows(store) == 30
    store.close()


def test_a_key_whose_time_is_over_is_free_before_it_is_cleared_away() -> None:
    store = SqliteStore("")
    for number in range(50):  # more than one claim clears away, and older
        claim(store, b"a", key=number.to_bytes(32), until=10)
    claim(store, b"a", until=20)
    store.settle(KEY, owner=b"a", outcome=ANSWER, until=20)
    assert claim(store, b"b", now=30, until=40) is None
    assert claim(store, b"c", now=31) == Record(PRINT, 40.0, None)
    store.close()


def test_of_many_that_race_for_a_key_one_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "claims.sqlite")
    stores = [SqliteStore(path) for _ in range(4)]  # a connection each, as processes have

    def race(store: SqliteStore) -> list[int]:
        return [n for n in range(50) if claim(store, b"x", key=n.to_bytes(32)) is None]

    with ThreadPoolExecutor(len(stores)) as pool:
        won = [number for numbers in pool.map(race, stores) for number in numbers]
    assert sorted(won) == list(range(50))
    for store in stores:
        store.close()


def test_outcomes_outlive_the_process_in_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "claims.sqlite")
    first = SqliteStore(path)
    claim(first, b"a")
    first.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
    first.close()
    second = SqliteStore(path)
    assert claim(second, b"b") == Record(PRINT, 100.0, ANSWER)
    second.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.sqlite"
    path.write_bytes(b"no database, but long enough to be one " * 50)
    with pytest.raises(StoreError, match=r"claims\.sqlite.*not a database"):
        SqliteStore(str(path))


def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        SqliteStore(str(tmp_path / "nowhere" / "claims.sqlite"))


def uses(store: SqliteStore) -> list[Callable[[], object]]:
    return [
        lambda: claim(store, b"a", key=OTHER),
        lambda: store.settle(KEY, owner=b"a", outcome=ANSWER, until=1),
        lambda: store.release(KEY, owner=b"a"),
    ]


def test_every_use_reports_a_broken_database() -> None:
    store = SqliteStore("")
    store._database.execute("DROP TABLE claims")
    for use in uses(store):
        with pytest.raises(StoreError, match="no such table"):
            use()
    store.close()


def test_a_full_disk_is_reported_and_passes() -> None:
    store = SqliteStore("")
    claim(store, b"a")
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    big = Outcome(ok=True, payload=bytes(1_000_000))
    with pytest.raises(StoreError, match="full"):
        store.settle(KEY, owner=b"a", outcome=big, until=100)
    store._database.execute("PRAGMA max_page_count = 100000")
    assert store.settle(KEY, owner=b"a", outcome=big, until=100)
    store.close()
