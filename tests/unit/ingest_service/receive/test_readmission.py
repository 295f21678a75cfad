"""Item 16 of issue 11: predictions that a wrong server clock rejected are accepted, each once."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from ingest_service.receive import rows
from ingest_service.receive.group import Message
from ingest_service.receive.ptars_decoder import PtarsDecoder
from ingest_service.receive.readmission import UNREADABLE, recheck
from ingest_service.store.duckdb import rejected as rejected_module
from ingest_service.store.duckdb import transaction as transaction_module
from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.duckdb.rejected import Rejected, RejectedFilter
from ingest_service.store.protocol import Filter
from ingest_service.translate import stored_to_proto
from tests.unit.ingest_service.samples import (
    NOW,
    SPOOL,
    detection,
    header,
    message,
    opening,
    prediction,
    request,
    shapes,
    spool,
    timestamp,
)
from tests.unit.ingest_service.store_conformance import commit, everything, stats, update_rollups

BEHIND = NOW - timedelta(days=5)
"""Time that the server's clock showed."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


def full(sequence: int, **fields: Any) -> Any:
    return prediction(
        sequence,
        captured_at=timestamp(NOW + timedelta(seconds=sequence)),
        inference_time=Duration(nanos=123_456_789),
        detections=[detection(track_id=-(2**63), confidence=0.1), detection(box=None), *shapes()],
        labels={"línea": "\N{SNOWMAN}", "": ""},
        defect_detected=False,
        model_version="1.2",
        trace_id="0123456789abcdef" * 2,
        **fields,
    )


@pytest.fixture
def rejected(path: Path) -> Path:
    """Create a store whose server was five days behind; of sequences 1 to 6, 4 breaks a rule."""
    with contextlib.closing(DuckDBStore(path)) as store:
        parts = [full(1), full(2), full(3), full(4, model_name=""), full(5), full(6)]
        commit(store, message(*parts), now=lambda: BEHIND)
        assert (stats(store).rejected, stats(store).total_predictions) == (6, 0)
    return path


def run(*flags: str) -> dict[str, Any]:
    command = [sys.executable, "-c", "from sightline.cli.app import main; main()", "readmit"]
    done = subprocess.run([*command, *flags], check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
def test_readmit_puts_each_back_once_and_whole(rejected: Path, tmp_path: Path) -> None:
    flags = ("--database", str(rejected))
    counted = run(*flags, "--dry-run")
    lags = {"gate-1": [-432_006.0, -432_001.0]}  # received five days before they were captured
    assert counted == {"readmitted": 5, "kept": {}, "lag_seconds": lags, "dry_run": True}
    assert run(*flags)["readmitted"] == 5
    nothing = {"readmitted": 0, "kept": {}, "lag_seconds": {}, "dry_run": False}
    assert run(*flags) == nothing
    with contextlib.closing(DuckDBStore(rejected)) as store:
        rejected_rows = {
            stored.position.sequence: stored_to_proto(stored) for stored in everything(store)
        }
        assert {n: stored.prediction for n, stored in rejected_rows.items()} == {
            n: full(n) for n in (1, 2, 3, 5, 6)
        }
        with contextlib.closing(store._cursor()) as cursor:
            ledger = "SELECT accepted, rejected, committed_through, balanced FROM ledger"
            assert cursor.execute(ledger).fetchall() == [(5, 1, 6, True)]
        before = stats(store)
        update_rollups(store)
        # Quantiles are now computed from buckets.
        assert replace(stats(store), inference_seconds=before.inference_seconds) == before
        assert before.total_predictions == 5
        assert store.maintenance().export(tmp_path / "out", NOW) > 0
        # The device resends everything: no duplicate is stored twice.
        commit(store, message(*map(full, range(1, 7))))
        assert stats(store, Filter(device_ids=(SPOOL.device_id,))).total_predictions == 5


@pytest.mark.slow
def test_a_rule_that_is_still_broken_keeps_its_row(rejected: Path) -> None:
    answer = run("--database", str(rejected), "--reason", "MODEL_NAME_REQUIRED")
    assert (answer["readmitted"], answer["kept"]) == (0, {"MODEL_NAME_REQUIRED": 1})


@pytest.mark.slow
def test_devices_and_times_narrow_what_is_looked_at(rejected: Path) -> None:
    flags = ("--database", str(rejected), "--dry-run")
    assert run(*flags, "--device", "another")["readmitted"] == 0
    assert run(*flags, "--since", f"{BEHIND.date() + timedelta(days=1)}")["readmitted"] == 0
    assert run(*flags, "--until", f"{BEHIND.date()}")["readmitted"] == 0
    assert run(*flags, "--since", f"{BEHIND.date()}", "--device", "gate-1")["readmitted"] == 5


def test_a_transaction_that_fails_moves_nothing(
    rejected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("power")

    monkeypatch.setattr(transaction_module, "delete_rejected", fail)
    with contextlib.closing(DuckDBStore(rejected)) as store:
        with store.transaction() as transaction:
            rejected_rows = transaction.rejected(RejectedFilter(), None)
        batch = recheck(rejected_rows, PtarsDecoder(), NOW)
        with pytest.raises(RuntimeError, match="power"), store.transaction() as transaction:
            transaction.readmit(batch.predictions, NOW)
        assert (stats(store).rejected, stats(store).total_predictions) == (6, 0)
        with contextlib.closing(store._cursor()) as cursor:
            assert cursor.execute("SELECT count(*) FROM prediction_shapes").fetchall() == [(0,)]


def test_batches_go_on_where_the_last_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rejected_module, "_FIND", rejected_module._FIND.replace("LIMIT 5000", "LIMIT 2")
    )
    with contextlib.closing(DuckDBStore(path)) as store:
        for number in (1, 2, 3):
            parts = [full(1), full(2), full(3)]
            commit(store, message(*parts, of=spool(number)), now=lambda: BEHIND)
        seen: list[tuple[str, int]] = []
        last: Rejected | None = None
        while True:
            with store.transaction() as transaction:
                rejected_rows = transaction.rejected(RejectedFilter(), last)
            if not rejected_rows:
                break
            assert len(rejected_rows) <= 2
            seen += [(stored.device_id, stored.sequence) for stored in rejected_rows]
            last = rejected_rows[-1]
        assert sorted(seen) == [(f"gate-{n}", s) for n in (1, 2, 3) for s in (1, 2, 3)]


def judged(captured: datetime, device_time: datetime | None, now: datetime = NOW) -> list[str]:
    """Return why a rejected prediction stays rejected; empty: it is readmitted."""
    original = next(
        rows.originals(
            request(prediction(1, captured_at=timestamp(captured))).SerializeToString(), [0], 1
        )
    )
    us = round(BEHIND.timestamp() * 1e6)
    device = None if device_time is None else round(device_time.timestamp() * 1e6)
    rejected_rows = Rejected(us, *SPOOL, 1, original, us, device, "")
    return list(recheck([rejected_rows], PtarsDecoder(), now).kept)


def test_the_device_s_clock_decides_where_it_is_known() -> None:
    far = NOW + timedelta(days=400)
    assert judged(NOW, NOW) == []
    assert judged(far, far) == []
    # Ahead of the device's clock at that time, although it is in the past by now.
    assert judged(NOW, BEHIND) == ["CAPTURED_AT_IN_FUTURE"]
    assert judged(NOW, None) == []
    assert judged(far, None) == ["CAPTURED_AT_IN_FUTURE"]


def test_every_form_of_an_original_is_read(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        wire = request(full(1), full(2), full(3), head=header()).SerializeToString()
        # A group that ends under another number: protobuf refuses the message, ptars reads it.
        strange = wire + bytes([0x7B, 0x84, 0x01])
        forms = [*rows.originals(wire, [0, 1], 1), *rows.originals(strange, [2], 1)]
        assert "image_id" in forms[0]
        assert "wire_base64" in forms[1]
        assert "message_base64" in forms[2]
        rejected_rows = [
            Rejected(1, *SPOOL, n, form, 1, None, "") for n, form in enumerate(forms, start=1)
        ]
        bad = ("{}", '{"wire_base64": "?"}', '{"message_base64": "", "prediction": 7}', "[]", "1")
        rejected_rows += [
            Rejected(1, *SPOOL, n, form, 1, None, "") for n, form in enumerate(bad, start=9)
        ]
        batch = recheck(rejected_rows, PtarsDecoder(), NOW)
        assert batch.predictions.column("sequence").to_pylist() == [1, 2, 3]
        assert batch.kept == {UNREADABLE: 5}
        with store.transaction() as transaction:
            transaction.write_predictions(batch.predictions, NOW)
        stored_by_sequence = {
            stored.position.sequence: stored_to_proto(stored) for stored in everything(store)
        }
        assert [stored_by_sequence[n].prediction for n in (1, 2, 3)] == [full(1), full(2), full(3)]


def test_the_offset_of_the_stream_comes_along(path: Path) -> None:
    with contextlib.closing(DuckDBStore(path)) as store:
        opened = opening(opened_at=BEHIND, device_time=BEHIND)
        body = request(full(1), head=header()).SerializeToString()
        commit(store, Message(0, opened, body, True), now=lambda: BEHIND)
        slow = opening(opened_at=BEHIND, device_time=NOW)
        body = request(full(2), head=header()).SerializeToString()
        commit(store, Message(1, slow, body, True), now=lambda: BEHIND + timedelta(seconds=1))
        (stored,) = everything(store)
        assert stored.clock_offset_seconds == -5 * 86_400


@pytest.mark.slow
def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from sightline.cli.app import main; main()", "readmit"]
    command += ["--database", str(tmp_path / "no.duckdb")]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (refused.returncode, "there is no file" in refused.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
