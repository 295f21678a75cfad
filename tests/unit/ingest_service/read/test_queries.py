import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ingest_service.read.queries import Queries
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.reader import DuckDBReader
from ingest_service.store.protocol import Reader, Watermark
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import SPOOL

PATIENCE = 10.0
ENDLESS = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range * b.range = 7"


@pytest.fixture
async def queries_of(tmp_path: Path) -> AsyncIterator[Callable[[int, int], Queries]]:
    store = DuckDBStore(tmp_path / "test.duckdb")
    created: list[Queries] = []

    def make(threads: int, queue: int) -> Queries:
        created.append(Queries(store, threads=threads, queue=queue))
        return created[-1]

    async with asyncio.timeout(PATIENCE):
        yield make
    for queries in created:
        queries.close()
    store.close()


async def test_a_query_returns_its_result(queries_of: Callable[[int, int], Queries]) -> None:
    assert await queries_of(1, 0).run(lambda reader: reader.watermark(SPOOL)) == Watermark()


async def test_a_query_raises_its_error(queries_of: Callable[[int, int], Queries]) -> None:
    def fail(_: Reader) -> None:
        raise RuntimeError("oops")

    queries = queries_of(1, 0)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="oops"):
            await queries.run(fail)


async def test_queries_beyond_the_queue_are_refused_with_a_delay(
    queries_of: Callable[[int, int], Queries],
) -> None:
    queries, go = queries_of(1, 1), threading.Event()
    running = [asyncio.create_task(queries.run(lambda _: go.wait(PATIENCE))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(SightlineError) as caught:
        await queries.run(lambda reader: reader.watermark(SPOOL))
    assert caught.value.code.name == "RESOURCE_EXHAUSTED"
    assert caught.value.retry_after == 1.0
    go.set()
    assert await asyncio.gather(*running) == [True, True]
    assert await queries.run(lambda reader: reader.watermark(SPOOL)) == Watermark()


async def test_a_query_that_nobody_waits_for_is_interrupted(
    queries_of: Callable[[int, int], Queries],
) -> None:
    queries, begun, ended = queries_of(1, 0), threading.Event(), threading.Event()

    def count_for_ever(reader: Reader) -> None:
        assert isinstance(reader, DuckDBReader)
        begun.set()
        try:
            reader._rows(ENDLESS, {})
        finally:
            ended.set()

    call = asyncio.create_task(queries.run(count_for_ever))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    call.cancel()
    assert await asyncio.to_thread(ended.wait, PATIENCE), "the thread must be free again"
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await queries.run(lambda reader: reader.watermark(SPOOL)) == Watermark()


async def test_a_query_that_is_given_up_before_its_turn_does_not_run(
    queries_of: Callable[[int, int], Queries],
) -> None:
    queries, go, ran = queries_of(1, 1), threading.Event(), threading.Event()
    running = asyncio.create_task(queries.run(lambda _: go.wait(PATIENCE)))
    waiting = asyncio.create_task(queries.run(lambda _: ran.set()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    go.set()
    assert await running
    assert await queries.run(lambda reader: reader.watermark(SPOOL)) == Watermark()
    assert not ran.is_set()
