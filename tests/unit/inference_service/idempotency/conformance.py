"""Conformance tests of claim stores; a test class for each store inherits them and opens it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing

import pytest

from inference_service.idempotency.store import ClaimOutcome, ClaimStore, ClaimVersion, Record

KEY, OTHER = b"k" * 32, b"o" * 32
PRINT = b"f" * 32
ANSWER = ClaimOutcome(ok=True, payload=b"answer \x00\xff")

Open = Callable[[], ClaimStore]
"""Opens the store once more; can be pickled if processes can share it."""


def claim(
    store: ClaimStore,
    owner: bytes,
    *,
    now: float = 0.0,
    until: float = 10.0,
    key: bytes = KEY,
    over: ClaimVersion | None = None,
) -> Record | None:
    return store.claim(key, fingerprint=PRINT, owner=owner, now=now, until=until, over=over)


def numbered(number: int) -> bytes:
    return number.to_bytes(32)


class ClaimStoreConformance:
    """One process's view."""

    @pytest.fixture
    def opening(self) -> Open:
        """Return the function that opens the store, an empty one for each test."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, opening: Open) -> Iterator[ClaimStore]:
        with closing(opening()) as opened:
            yield opened

    def test_a_free_key_is_claimed_once(self, store: ClaimStore) -> None:
        assert claim(store, b"a") is None
        assert claim(store, b"b", until=20) == Record(PRINT, 10.0, None)

    def test_a_claim_may_be_made_again_by_its_owner(self, store: ClaimStore) -> None:
        assert claim(store, b"a") is None
        assert claim(store, b"a") is None
        assert claim(store, b"b") == Record(PRINT, 10.0, None)

    def test_a_settled_key_is_not_its_owner_s_either(self, store: ClaimStore) -> None:
        claim(store, b"a")
        store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert claim(store, b"a") == Record(PRINT, 100.0, ANSWER)

    def test_keys_do_not_touch_each_other(self, store: ClaimStore) -> None:
        assert claim(store, b"a") is None
        assert claim(store, b"a", key=OTHER) is None
        assert store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert claim(store, b"b", key=OTHER) == Record(PRINT, 10.0, None)

    @pytest.mark.parametrize(
        "outcome",
        [
            ANSWER,
            ClaimOutcome(ok=False, payload=b""),
            ClaimOutcome(True, b""),
            ClaimOutcome(True, bytes(300_000)),
        ],
        ids=["answer", "failure", "empty", "large"],
    )
    def test_an_outcome_is_kept_to_the_byte(self, store: ClaimStore, outcome: ClaimOutcome) -> None:
        claim(store, b"a")
        assert store.settle(KEY, owner=b"a", outcome=outcome, until=100)
        assert claim(store, b"b", now=99.9) == Record(PRINT, 100.0, outcome)

    def test_an_outcome_is_forgotten_when_its_time_is_over(self, store: ClaimStore) -> None:
        claim(store, b"a")
        store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert claim(store, b"b", now=100.0, until=110) is None
        assert claim(store, b"c", now=100.0) == Record(PRINT, 110.0, None)

    def test_no_time_of_day_ends_a_pending_claim(self, store: ClaimStore) -> None:
        claim(store, b"a", until=10)
        assert claim(store, b"b", now=1e12, until=2e12) == Record(PRINT, 10.0, None)
        prune_all(store, now=1e12)
        assert claim(store, b"b", now=1e12, until=2e12) == Record(PRINT, 10.0, None)

    def test_a_claim_is_taken_over_only_with_its_latest_mark(self, store: ClaimStore) -> None:
        claim(store, b"a", until=10)
        before = store.pending()
        assert before == [(KEY, (b"a", 10.0))]
        store.renew(KEY, owner=b"a", until=10.5)
        assert claim(store, b"b", over=before[0][1]) == Record(PRINT, 10.5, None)
        assert claim(store, b"b", over=(b"x", 10.5)) == Record(PRINT, 10.5, None)
        assert claim(store, b"b", over=(b"a", 10.5), until=20) is None
        assert store.pending() == [(KEY, (b"b", 20.0))]

    def test_a_claim_that_was_taken_over_is_not_its_zombie_s(self, store: ClaimStore) -> None:
        claim(store, b"zombie", until=10)
        assert claim(store, b"heir", over=(b"zombie", 10.0), until=20) is None
        assert not store.settle(KEY, owner=b"zombie", outcome=ANSWER, until=100)
        assert not store.renew(KEY, owner=b"zombie", until=100)
        assert not store.release(KEY, owner=b"zombie")
        assert claim(store, b"c", now=11.0) == Record(PRINT, 20.0, None)
        assert store.settle(KEY, owner=b"heir", outcome=ANSWER, until=100)

    def test_a_late_owner_may_settle_if_nobody_took_over(self, store: ClaimStore) -> None:
        claim(store, b"a", until=10)
        assert store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)

    def test_an_outcome_cannot_be_replaced(self, store: ClaimStore) -> None:
        claim(store, b"a")
        store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert not store.settle(KEY, owner=b"a", outcome=ClaimOutcome(False, b"other"), until=200)
        assert not store.renew(KEY, owner=b"a", until=200)
        store.release(KEY, owner=b"a")
        assert claim(store, b"b") == Record(PRINT, 100.0, ANSWER)

    def test_a_claim_that_never_was_can_be_neither_settled_nor_renewed(
        self, store: ClaimStore
    ) -> None:
        assert not store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert not store.renew(KEY, owner=b"a", until=100)
        assert claim(store, b"b") is None

    def test_a_released_key_is_free(self, store: ClaimStore) -> None:
        claim(store, b"a")
        assert not store.release(KEY, owner=b"b")
        assert claim(store, b"b") is not None
        assert store.release(KEY, owner=b"a")
        assert claim(store, b"b") is None

    def test_who_holds_a_key_can_be_found(self, store: ClaimStore) -> None:
        assert store.find(KEY, now=0) is None
        claim(store, b"a", until=10)
        assert store.find(KEY, now=11) == Record(PRINT, 10.0, None)
        store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert store.find(KEY, now=99) == Record(PRINT, 100.0, ANSWER)
        assert store.find(KEY, now=100) is None
        assert store.pending() == []

    def test_its_clock_never_goes_back_and_is_moved_by_nobody_else(self, store: ClaimStore) -> None:
        begun = store.time()
        assert store.time() == begun
        assert store.time(begun + 5) == begun + 5
        assert store.time(begun) == begun + 5

    def test_an_outcome_from_a_clock_that_was_ahead_is_not_kept_for_ever(
        self, store: ClaimStore
    ) -> None:
        claim(store, b"a")
        store.settle(KEY, owner=b"a", outcome=ANSWER, until=1e12)
        store.prune(0.0, 100.0)
        assert claim(store, b"b", now=99) == Record(PRINT, 100.0, ANSWER)

    def test_a_new_claim_brings_its_own_fingerprint(self, store: ClaimStore) -> None:
        claim(store, b"a", until=10)
        over = (b"a", 10.0)
        store.claim(KEY, fingerprint=b"new", owner=b"b", now=11, until=20, over=over)
        assert claim(store, b"c", now=11) == Record(b"new", 20.0, None)

    def test_what_is_done_together_is_done(self, store: ClaimStore) -> None:
        with store.transaction():
            assert claim(store, b"a") is None
            assert claim(store, b"b", key=OTHER) is None
            assert store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        assert claim(store, b"c") == Record(PRINT, 100.0, ANSWER)
        assert claim(store, b"c", key=OTHER) == Record(PRINT, 10.0, None)

    def test_what_is_done_together_is_undone_together(self, store: ClaimStore) -> None:
        def fail() -> None:
            with store.transaction():
                claim(store, b"a")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert claim(store, b"b") is None

    def test_tidying_forgets_what_is_over_and_nothing_else(self, store: ClaimStore) -> None:
        for number in range(2000):
            claim(store, b"a", key=numbered(number), until=10)
            if number % 2:
                store.settle(numbered(number), owner=b"a", outcome=ANSWER, until=11)
        claim(store, b"a", until=10)
        store.settle(KEY, owner=b"a", outcome=ANSWER, until=12)
        claim(store, b"a", key=OTHER, until=12)
        prune_all(store, now=11)
        assert len(store.pending()) == 1001
        assert store.size().rows == 1002
        assert claim(store, b"b", now=11.9) == Record(PRINT, 12.0, ANSWER)
        assert claim(store, b"b", now=11.9, key=OTHER) == Record(PRINT, 12.0, None)

    def test_an_empty_store_needs_no_tidying(self, store: ClaimStore) -> None:
        assert not store.prune(0.0, 1e9)
        assert store.size().rows == 0

    def test_threads_may_take_turns(self, store: ClaimStore) -> None:
        turn = threading.Lock()

        def claim_all(owner: bytes) -> int:
            won = 0
            for number in range(50):
                with turn:
                    won += claim(store, owner, key=numbered(number)) is None
            return won

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(claim_all, [b"a", b"b", b"c", b"d"])) == 50


class SharedStoreConformance(ClaimStoreConformance):
    """Conformance tests for several processes on one store."""

    def test_each_sees_what_the_other_did(self, opening: Open) -> None:
        with closing(opening()) as first_store, closing(opening()) as second_store:
            assert claim(first_store, b"a") is None
            assert claim(second_store, b"b") == Record(PRINT, 10.0, None)
            assert not second_store.settle(KEY, owner=b"b", outcome=ANSWER, until=100)
            assert first_store.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
            assert claim(second_store, b"b") == Record(PRINT, 100.0, ANSWER)

    def test_all_have_one_clock(self, opening: Open) -> None:
        with closing(opening()) as first_store, closing(opening()) as second_store:
            begun = first_store.time()
            assert second_store.time(begun + 7) == first_store.time() == begun + 7

    def test_outcomes_outlive_who_wrote_them(self, opening: Open) -> None:
        with closing(opening()) as first:
            claim(first, b"a")
            first.settle(KEY, owner=b"a", outcome=ANSWER, until=100)
        with closing(opening()) as second:
            assert claim(second, b"b") == Record(PRINT, 100.0, ANSWER)

    @pytest.mark.slow
    def test_of_processes_that_race_for_keys_one_wins_each(self, opening: Open) -> None:
        racers = 4
        # Spawned, as servers are: a forked child would share the parent's open files.
        context = multiprocessing.get_context("spawn")
        with (
            context.Manager() as manager,
            ProcessPoolExecutor(racers, mp_context=context) as pool,
        ):
            line = manager.Barrier(racers)
            racing = [pool.submit(_race, opening, line, 300) for _ in range(racers)]
            won = [race.result(60) for race in racing]
        assert sorted(number for numbers, _ in won for number in numbers) == list(range(300))
        with closing(opening()) as store:
            for numbers, owner in won:
                for number in numbers:
                    held = claim(store, b"x", key=numbered(number))
                    assert held == Record(PRINT, 100.0, ClaimOutcome(True, owner))


def _race(opening: Open, line: threading.Barrier, keys: int) -> tuple[list[int], bytes]:
    """Claim and settle what it can; return which it got, and as whom. Runs in a process."""
    owner = os.urandom(16)
    won = []
    line.wait(60)  # opening a new store is part of the race
    with closing(opening()) as store:
        for number in range(keys):
            key = numbered(number)
            if claim(store, owner, key=key) is None:
                won.append(number)
                assert store.settle(key, owner=owner, outcome=ClaimOutcome(True, owner), until=100)
            else:
                assert not store.settle(key, owner=owner, outcome=ANSWER, until=100)
                store.release(key, owner=owner)
    return won, owner


def prune_all(store: ClaimStore, now: float) -> None:
    """Prune until there is nothing more to do."""
    for _ in range(1000):
        if not store.prune(now, now + 1e9):
            return
    raise AssertionError("tidying never ends")
