"""The handler of WatchPredictions on a real store: retention behind the cursor."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sightline.ingest.v1 import reads_pb2

from ingest_service.read.watching import Watches
from ingest_service.store.duckdb.file_store import DuckDBStore
from servicekit.errors import SightlineError
from tests.unit.ingest_service.samples import NOW, message, predictions
from tests.unit.ingest_service.store_conformance import commit


async def test_a_token_older_than_retention_is_refused(tmp_path: Path) -> None:
    store = DuckDBStore(tmp_path / "test.duckdb")
    watches = Watches(store, at_once=9, message_bytes=1 << 20)

    def stream(token: str) -> AsyncIterator[reads_pb2.WatchPredictionsResponse]:
        ask = reads_pb2.WatchPredictionsRequest(resume_token=token, max_per_second=1000)
        return watches.watch_predictions(ask, cast("Any", None))

    async with asyncio.timeout(20):
        beginning = await anext(stream(""))
        commit(store, message(*predictions(1, 9)))
        resumed = stream(beginning.resume_token)
        await anext(resumed)
        caught_up = await anext(resumed)
        assert len(caught_up.predictions) == 9
        maintenance = store.maintenance()
        maintenance.update_rollups(NOW, everything=True)
        assert maintenance.expire(NOW + timedelta(days=1), exported_only=False) == 9
        late = stream(beginning.resume_token)
        await anext(late)
        with pytest.raises(SightlineError) as caught:
            await anext(late)
        assert (caught.value.code.name, caught.value.reason) == (
            "OUT_OF_RANGE",
            "RESUME_TOKEN_EXPIRED",
        )
        commit(store, message(*predictions(10, 12)))
        current = stream(caught_up.resume_token)
        await anext(current)
        assert len((await anext(current)).predictions) == 3
    watches.close()
    store.close()
