"""The claim worker: batches, order, renewals, pruning, and failures that it survives."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from inference_service.idempotency.claim_worker import ClaimWorker
from inference_service.idempotency.store import ClaimOutcome, ClaimStoreError
from tests.unit.inference_service.idempotency.work import HeldStore, ends_soon, until

PRINT = b"f" * 32
ANSWER = ClaimOutcome(True, b"answer")


def key(number: int) -> bytes:
    return number.to_bytes(32)


@asynccontextmanager
async def worker_on(store: HeldStore, *, lease: float = 5.0) -> AsyncIterator[ClaimWorker]:
    worker = ClaimWorker(store, keep_seconds=0.2, lease_seconds=lease)
    yield worker
    store.let_go.set()
    await worker.close()


async def test_what_waits_is_done_in_one_transaction_and_in_order() -> None:
    store = HeldStore()
    async with worker_on(store) as worker:
        await until(lambda: store.transactions > 0)  # the first pruning is over
        store.hold()
        first = worker.claim(key(0), fingerprint=PRINT, owner=b"a")
        assert not await ends_soon(first)
        done = store.transactions
        claims = [worker.claim(key(n), fingerprint=PRINT, owner=b"a") for n in range(1, 40)]
        worker.release_later(key(1), owner=b"a")
        again = worker.claim(key(1), fingerprint=PRINT, owner=b"b")
        settled = worker.settle(key(2), owner=b"a", outcome=ANSWER)
        store.let_go.set()
        assert await asyncio.gather(first, *claims) == [None] * 40
        assert await again is None
        assert await settled
        assert store.transactions == done + 1


async def test_callers_get_the_store_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    store, order = HeldStore(), list[bytes]()
    claim = store.claim

    def noting(key: bytes, **arguments: Any) -> Any:
        order.append(key)
        return claim(key, **arguments)

    monkeypatch.setattr(store, "claim", noting)
    async with worker_on(store) as worker:
        await until(lambda: store.transactions > 0)
        store.hold()
        first = worker.claim(key(0), fingerprint=PRINT, owner=b"a", flow="flood")
        assert not await ends_soon(first)
        flood = [
            worker.claim(key(n), fingerprint=PRINT, owner=b"a", flow="flood") for n in range(1, 200)
        ]
        good = worker.claim(key(1000), fingerprint=PRINT, owner=b"b", flow="good")
        store.let_go.set()
        await asyncio.gather(first, *flood, good)
    assert order.index(key(1000)) <= 2
    assert [each for each in order if each != key(1000)] == [key(n) for n in range(200)]


async def test_one_that_fails_does_not_fail_what_waits_with_it() -> None:
    store = HeldStore()
    async with worker_on(store) as worker:
        await until(lambda: worker._prune_at > 0)
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        await worker.claim(key(0), fingerprint=PRINT, owner=b"a")
        store._database.execute(f"PRAGMA max_page_count = {pages + 10}")
        store.hold()
        first = worker.claim(key(1), fingerprint=PRINT, owner=b"a")
        big = worker.settle(key(0), owner=b"a", outcome=ClaimOutcome(True, bytes(1_000_000)))
        second = worker.claim(key(2), fingerprint=PRINT, owner=b"a")
        assert not await ends_soon(first)
        store.let_go.set()
        assert await first is None
        with pytest.raises(ClaimStoreError, match="full"):
            await big
        assert await second is None


async def test_time_is_up_for_what_is_kept_even_if_nothing_else_comes() -> None:
    store = HeldStore()
    async with worker_on(store) as worker:
        for number in range(20):
            await worker.claim(key(number), fingerprint=PRINT, owner=b"a")
            assert await worker.settle(key(number), owner=b"a", outcome=ANSWER)
        await until(lambda: store.size().rows == 0)


async def test_it_says_how_much_there_is() -> None:
    store = HeldStore()
    for number in range(3):
        now = time.time()
        store.claim(key(number), fingerprint=PRINT, owner=b"a", now=now, until=now + 100)
    async with worker_on(store) as worker:
        await until(lambda: worker.size.rows == 3)
        assert worker.size.bytes > 0


async def test_leases_are_renewed_until_they_are_settled_or_released() -> None:
    store = HeldStore()
    async with worker_on(store, lease=1.0) as worker:
        for number in range(3):
            await worker.claim(key(number), fingerprint=PRINT, owner=str(number).encode())
        await asyncio.sleep(1.3)  # longer than a lease
        for number in range(3):
            assert await worker.claim(key(number), fingerprint=PRINT, owner=b"x") is not None
        worker.release_later(key(0), owner=b"0")
        assert await worker.settle(key(1), owner=b"1", outcome=ANSWER)
        assert await worker.claim(key(0), fingerprint=PRINT, owner=b"x") is None


async def test_a_renewal_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Flaky(HeldStore):
        renewals = 0

        def renew(self, key: bytes, *, owner: bytes, until: float) -> bool:
            self.renewals += 1
            if self.renewals <= 2:
                raise ClaimStoreError("flaky")
            return super().renew(key, owner=owner, until=until)

    store = Flaky()
    async with worker_on(store, lease=1.0) as worker:
        await worker.claim(key(0), fingerprint=PRINT, owner=b"a")
        await until(lambda: store.renewals >= 5)  # one each quarter of a lease: it had run out
        assert await worker.claim(key(0), fingerprint=PRINT, owner=b"x") is not None
    assert caplog.text.count("flaky") == 1


async def test_a_bug_in_a_store_is_an_error_and_not_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Buggy(HeldStore):
        def settle(self, *_arguments: object, **_named: object) -> bool:
            raise ZeroDivisionError

    store = Buggy()
    async with worker_on(store) as worker:
        await worker.claim(key(0), fingerprint=PRINT, owner=b"a")
        with pytest.raises(ClaimStoreError, match="ZeroDivisionError"):
            await worker.settle(key(0), owner=b"a", outcome=ANSWER)
        assert "ZeroDivisionError" in caplog.text
        assert await worker.claim(key(1), fingerprint=PRINT, owner=b"a") is None


async def test_a_caller_that_left_is_no_trouble() -> None:
    store = HeldStore()
    async with worker_on(store) as worker:
        store.hold()
        left = worker.claim(key(0), fingerprint=PRINT, owner=b"a")
        left.cancel()
        store.let_go.set()
        assert await worker.claim(key(1), fingerprint=PRINT, owner=b"a") is None
