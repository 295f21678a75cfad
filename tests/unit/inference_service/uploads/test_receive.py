"""An upload's way through threads: whoever gives up when, nothing of it stays."""

import asyncio
import hashlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from inference_service.uploads.errors import UploadStoreError
from inference_service.uploads.index import StoreLimits
from inference_service.uploads.parts import Header, Part
from inference_service.uploads.receive import Uploads
from inference_service.uploads.reference import ReferenceSigner
from inference_service.uploads.store import UploadStore
from servicekit.auth.caller import ANONYMOUS
from servicekit.calls.budget_bounds import BudgetBounds
from servicekit.calls.memory_budget import MemoryBudget
from servicekit.errors import SightlineError
from tests.unit.inference_service.tiny_onnx import picture
from vision import ImageLimits

RED = picture(size=(400, 400), kind="BMP")  # 480 000 bytes: more than is collected at once
HEADER = Header(hashlib.sha256(RED).digest(), len(RED))
WHOLE: list[Part] = [HEADER, RED[:100_000], RED[100_000:450_000], RED[450_000:]]
OWNER = ANONYMOUS.identity


class UploadClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FailingUploadStore(UploadStore):
    """A real one, whose steps can be held up or fail."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, StoreLimits(10**6, 10**6, 2, 0))
        self.hold: dict[str, threading.Event] = {}
        self.failing: set[str] = set()
        self.reached: set[str] = set()

    def _step(self, name: str) -> None:
        self.reached.add(name)
        if name in self.hold:
            assert self.hold[name].wait(10)
        if name in self.failing:
            raise UploadStoreError("the disk is broken")

    def begin(self, *args: Any) -> Any:
        self._step("begin")
        return super().begin(*args)

    def append(self, *args: Any) -> None:
        self._step("append")
        super().append(*args)

    def finish(self, *args: Any) -> None:
        self._step("finish")
        super().finish(*args)

    def clean(self, now: float, latest: float = math.inf) -> int:
        self._step("clean")
        return super().clean(now, latest)


@pytest.fixture
def store(tmp_path: Path) -> FailingUploadStore:
    return FailingUploadStore(str(tmp_path / "uploads"))


@pytest.fixture
def clock() -> UploadClock:
    return UploadClock()


@pytest.fixture
async def uploads(store: FailingUploadStore, clock: UploadClock) -> AsyncIterator[Uploads]:
    created = Uploads(
        store, ReferenceSigner(store.key()), ImageLimits(), keep_seconds=60, clock=clock
    )
    yield created
    for event in store.hold.values():
        event.set()
    await created.close()


async def messages(parts: Sequence[Part]) -> AsyncIterator[Part]:
    for part in parts:
        yield part


def left(store: FailingUploadStore) -> list[str]:
    return [path.name for path in store._folder.glob("*.part")]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)


async def test_what_was_received_can_be_fetched(uploads: Uploads, clock: UploadClock) -> None:
    uploaded = await uploads.receive(ANONYMOUS, messages(WHOLE))
    assert uploaded.claim.expires_at == 1060
    content = uploads.fetch(OWNER, uploaded.reference)
    assert content.data == RED
    assert content.sha256 == HEADER.sha256
    clock.now = 1060.0
    with pytest.raises(SightlineError, match="REFERENCE_EXPIRED"):
        uploads.fetch(OWNER, uploaded.reference)


async def test_a_fetched_image_needs_room(uploads: Uploads) -> None:
    uploaded = await uploads.receive(ANONYMOUS, messages(WHOLE))
    async with MemoryBudget(BudgetBounds(len(RED) + 10, 10)).reservation("flow"):
        uploads.fetch(OWNER, uploaded.reference)
        with pytest.raises(SightlineError, match="TOO_MUCH_IN_FLIGHT"):
            await asyncio.to_thread(uploads.fetch, OWNER, uploaded.reference)


async def test_callers_are_served_in_turn(
    uploads: Uploads, store: FailingUploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    begin = store.begin

    def noting(owner: str, *arguments: Any) -> Any:
        order.append(owner)
        return begin(owner, *arguments)

    monkeypatch.setattr(store, "begin", noting)
    store.hold["begin"] = threading.Event()
    flood, good = (replace(ANONYMOUS, name=name) for name in ("flood", "good"))
    calls = [asyncio.create_task(uploads.receive(flood, messages(WHOLE))) for _ in range(40)]
    await until(lambda: len(order) == 4)  # all threads are at it
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(uploads.receive(good, messages(WHOLE))))
    await asyncio.sleep(0)
    store.hold.pop("begin").set()
    await asyncio.gather(*calls, return_exceptions=True)  # some are over the quota
    assert order.index(good.identity) <= 4 + 4


@pytest.mark.parametrize("step", ["begin", "append", "finish"])
async def test_who_gives_up_leaves_nothing(
    uploads: Uploads, store: FailingUploadStore, step: str
) -> None:
    store.hold[step] = threading.Event()
    call = asyncio.create_task(uploads.receive(ANONYMOUS, messages(WHOLE)))
    await until(lambda: step in store.reached)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    store.hold.pop(step).set()
    await until(lambda: not left(store))
    for _ in range(3):  # nor is the quota of two used up
        await uploads.receive(ANONYMOUS, messages(WHOLE))


@pytest.mark.parametrize("step", ["begin", "append", "finish"])
async def test_a_store_that_fails(uploads: Uploads, store: FailingUploadStore, step: str) -> None:
    store.failing.add(step)
    with pytest.raises(SightlineError) as caught:
        await uploads.receive(ANONYMOUS, messages(WHOLE))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == "UPLOAD_STORE_UNAVAILABLE"
    assert not left(store)


async def test_what_is_refused_leaves_its_room_at_once(
    uploads: Uploads, store: FailingUploadStore
) -> None:
    bad: list[Part] = [Header(bytes(32), len(RED)), RED]
    for _ in range(5):
        with pytest.raises(SightlineError, match="IMAGE_HASH_MISMATCH"):
            await uploads.receive(ANONYMOUS, messages(bad))
        assert not left(store)


async def test_a_stream_that_breaks_leaves_nothing(
    uploads: Uploads, store: FailingUploadStore
) -> None:
    async def breaking() -> AsyncIterator[Part]:
        for part in WHOLE[:3]:
            yield part
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await uploads.receive(ANONYMOUS, breaking())
    assert "append" in store.reached
    assert not left(store)


async def test_small_chunks_are_collected(uploads: Uploads, store: FailingUploadStore) -> None:
    appended: list[int] = []
    append = store.append

    def noting(incoming: Any, data: bytes) -> None:
        appended.append(len(data))
        append(incoming, data)

    store.append = noting  # type: ignore[method-assign]
    small = [RED[at : at + 100] for at in range(0, len(RED), 100)]
    await uploads.receive(ANONYMOUS, messages([HEADER, *small]))
    assert len(appended) == 2


async def test_it_cleans_up_and_goes_on_when_that_fails(
    uploads: Uploads, store: FailingUploadStore, clock: UploadClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.uploads.receive._CLEAN_SECONDS", 0.01)
    await uploads.receive(ANONYMOUS, messages(WHOLE))
    store.failing.add("clean")
    uploads.start()
    await until(lambda: "clean" in store.reached)
    clock.now = 2000.0
    store.failing.clear()
    await until(lambda: not any(len(p.name) == 64 for p in store._folder.iterdir()))
