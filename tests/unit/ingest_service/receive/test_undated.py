"""Predictions of a device that had lost the time, with the server's time instead."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sightline.types.v1.prediction_pb2 import Prediction

from ingest_service.receive.group import Message, MessageOutcome
from ingest_service.receive.group_writer import GroupWriter
from ingest_service.receive.undated import DEVICE_TIME_LABEL
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.translate import stored_to_proto
from tests.unit.ingest_service.samples import (
    DECODERS,
    NOW,
    message,
    opening,
    prediction,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import everything

LOST = datetime(1970, 1, 1, 0, 0, 5, 250_000, tzinfo=UTC)
FULL = {f"label-{number}": "" for number in range(64)}


def lost(sequence: int, **fields: Any) -> Prediction:
    return prediction(sequence, captured_at=timestamp(LOST + timedelta(seconds=sequence)), **fields)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckDBStore]:
    with contextlib.closing(DuckDBStore(tmp_path / "test.duckdb")) as opened:
        yield opened


def commit(
    store: DuckDBStore, sent: Message, decoder: str = "ptars", *, date_undated: bool = True
) -> MessageOutcome:
    writer = GroupWriter(store, lambda: NOW, decoder=DECODERS[decoder], date_undated=date_undated)
    (outcome,) = writer.commit(writer.prepare([sent]))
    return outcome


def stored(store: DuckDBStore) -> dict[int, Prediction]:
    return {row.position.sequence: stored_to_proto(row).prediction for row in everything(store)}


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_server_dates_what_has_no_time(store: DuckDBStore, decoder: str) -> None:
    missing = prediction(3)
    missing.ClearField("captured_at")
    taken = {DEVICE_TIME_LABEL: "tomorrow", "line": "4"}
    sent = [
        lost(1, labels=taken),
        prediction(2),
        missing,
        lost(4, labels=FULL),
        lost(5, model_name=""),
        prediction(6, captured_at=timestamp(NOW + timedelta(days=2))),
        lost(7, labels={**FULL, "one": "more"}),
    ]
    outcome = commit(store, message(*sent), decoder)
    assert [(one.sequence, one.reason) for one in outcome.rejections] == [
        (5, "MODEL_NAME_REQUIRED"),
        (6, "CAPTURED_AT_IN_FUTURE"),
        (7, "TOO_MANY_LABELS"),
    ]
    rows = stored(store)
    assert rows[2] == sent[1], "a time that is plausible stays"
    for sequence, labels, told in (
        (1, {"line": "4"}, "1970-01-01T00:00:06.250000+00:00"),
        (3, {}, "none"),
        (4, FULL, "1970-01-01T00:00:09.250000+00:00"),
    ):
        assert rows[sequence].captured_at == timestamp(NOW)
        assert rows[sequence].labels == {**labels, DEVICE_TIME_LABEL: told}
        assert rows[sequence].detections == sent[sequence - 1].detections


def test_without_the_setting_it_is_rejected_with_its_original(store: DuckDBStore) -> None:
    outcome = commit(store, message(lost(1)), date_undated=False)
    assert [one.reason for one in outcome.rejections] == ["CAPTURED_AT_TOO_EARLY"]
    assert stored(store) == {}


def test_what_is_sent_again_is_a_duplicate(store: DuckDBStore) -> None:
    sent = message(lost(1), lost(2))
    assert commit(store, sent).accepted == 2
    again = commit(store, sent)
    assert (again.accepted, again.duplicates, again.error) == (0, 2, None)


def test_a_device_that_sends_its_lost_clock_keeps_its_times(store: DuckDBStore) -> None:
    """The offset in the store corrects them."""
    sent = lost(1)
    of_its_clock = message(sent)._replace(opening=opening(device_time=LOST))
    assert commit(store, of_its_clock).accepted == 1
    assert stored(store) == {1: sent}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "captured"),
    [
        (["--server-time"], NOW),
        (["--add-seconds", str((NOW - LOST).total_seconds())], NOW + timedelta(seconds=1)),
        ([], None),
    ],
)
def test_readmission_corrects_the_time(
    tmp_path: Path, flag: list[str], captured: datetime | None
) -> None:
    path = tmp_path / "test.duckdb"
    with contextlib.closing(DuckDBStore(path)) as store:
        assert commit(store, message(lost(1)), date_undated=False).accepted == 0
    command = [sys.executable, "-c", "from sightline.cli.app import main; main()", "readmit"]
    command += ["--database", str(path), *flag]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    answer = json.loads(done.stdout)
    lag = (NOW - LOST).total_seconds() - 1
    assert answer["lag_seconds"] == {"gate-1": [pytest.approx(lag), pytest.approx(lag)]}
    with contextlib.closing(DuckDBStore(path)) as store:
        rows = stored(store)
        with contextlib.closing(store._cursor()) as cursor:
            ledger = cursor.execute("SELECT accepted, rejected, balanced FROM ledger").fetchall()
    if captured is None:
        assert (answer["readmitted"], answer["kept"]) == (0, {"CAPTURED_AT_TOO_EARLY": 1})
        assert ledger == [(0, 1, True)]
    else:
        assert answer["readmitted"] == 1
        assert rows[1].captured_at == timestamp(captured)
        assert rows[1].labels == {DEVICE_TIME_LABEL: "1970-01-01T00:00:06.250000+00:00"}
        assert ledger == [(1, 0, True)]
