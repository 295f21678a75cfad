from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from ingest_service.receive.group_writer import GroupWriter
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.transaction import DuckDBTransaction
from tests.unit.ingest_service.samples import NOW, message, predictions


class Noting(DuckDBStore):
    """A store that records the calls of its methods."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.steps: list[str] = []

    @contextmanager
    def transaction(self) -> Iterator[DuckDBTransaction]:
        with super().transaction() as transaction:
            insert = transaction.write_predictions

            def noted(predictions: pa.Table, received_at: datetime) -> None:
                insert(predictions, received_at)
                self.steps.append("insert")

            transaction.write_predictions = noted  # type: ignore[method-assign] # of this one
            yield transaction
        self.steps.append("commit")


def test_the_next_group_may_be_decoded_when_only_the_commit_is_left(tmp_path: Path) -> None:
    """Earlier, the insert would wait for the interpreter's lock while messages are decoded."""
    store = Noting(tmp_path / "x.duckdb")
    writer = GroupWriter(store, lambda: NOW)
    group = writer.prepare([message(*predictions(1, 3))])
    writer.commit(group, on_commit=lambda: store.steps.append("next"))
    assert store.steps == ["insert", "next", "commit"]
    store.close()
