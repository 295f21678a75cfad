"""`sightline devices`, `ledger`, `gaps`, `rejections` and `show` against a real service."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from sightline.ingest.v1 import ingest_service_pb2_grpc, reads_pb2
from typer.testing import CliRunner, Result

from ingest_service.store.duckdb.file_store import DuckDBStore
from ingest_service.store.record_types import StreamAccount
from sightline.cli.app import app
from sightline.cli.processes import ServiceProcess
from tests.unit.ingest_service.record_conformance import bad, opened
from tests.unit.ingest_service.samples import SPOOL, gap, prediction, predictions, spool, timestamp
from tests.unit.ingest_service.store_conformance import commit

FIGURES = ("series", "confidence", "versions", "frame")
ACCOUNT = StreamAccount(12_345, 4096, 90.5, {"spool_age": 2}, 9, 5.0)
LONG = spool(3)._replace(device_id="a-device-with-a-very-long-name-" + "x" * 60)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a silent device, one that sends, and one with a long name."""
    path = tmp_path_factory.mktemp("records") / "a.duckdb"
    now = datetime.now(UTC)
    with contextlib.closing(DuckDBStore(path)) as store:
        hours_ago = now - timedelta(hours=3)
        parts = (prediction(1), bad(2), gap(3, 5, reason=4), gap(6, 6, reason=77))
        commit(store, opened(SPOOL, *parts), now=lambda: hours_ago)
        commit(store, opened(LONG, *predictions(1, 3)), now=lambda: now)
        sent = prediction(1, captured_at=timestamp(now), labels={"line": "[red]4"})
        commit(store, opened(spool(2), sent, account=ACCOUNT, opened_at=now), now=lambda: now)
    with ServiceProcess(
        "ingest_service", ["--listen", "127.0.0.1:0", "--database", str(path)]
    ) as service:
        yield service.address


def run(target: str, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--target", target], env={"COLUMNS": "80"})


def lines(target: str, *words: str) -> list[Any]:
    done = run(target, *words, "--json")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(target: str, *words: str) -> list[str]:
    done = run(target, *words)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    return [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("words", ["stats", "devices", "ledger", "gaps", "rejections", *FIGURES])
def test_a_device_that_the_server_does_not_know_is_named(target: str, words: str) -> None:
    done = run(target, words, *("--device", "gate-1", "--device", "gate-l", "--device", "gate-2"))
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "the server knows no device 'gate-l': `sightline devices` lists those that it knows"
    ]
    assert run(target, words, "--device", "gate-2").stderr == ""


def test_devices_show_who_is_silent_and_what_waits(target: str) -> None:
    _, silent, sending = lines(target, "devices")
    assert (silent["device_id"], silent["silent"], silent["account"]) == ("gate-1", True, None)
    assert 10_800 <= silent["age_seconds"] < 20_000
    assert sending["silent"] is False
    assert sending["account"]["waiting_predictions"] == 12_345
    assert sending["account"]["dropped"] == [{"reason": "spool_age", "count": 2}]
    assert (sending["account"]["oldest_waiting"], sending["predictions"]) == (90.5, 1)
    assert sending["predictions_per_second"] == 1 / 300
    shown = rows(target, "devices")
    assert "gate-1 3 h ago 0.00 0.00 - 1 4" in shown
    assert shown[-1] == "3 devices, 1 of them silent for over 5 min"
    assert rows(target, "devices", "--silent-after", "86400")[-1].startswith("3 devices, 0 of")
    assert [d["device_id"] for d in lines(target, "devices", "--device", "gate-2")] == ["gate-2"]


def test_the_ledger_has_every_spool_and_their_total(target: str) -> None:
    (answer,) = lines(target, "ledger")
    assert {entry["device_id"] for entry in answer["entries"]} == {
        "gate-1",
        "gate-2",
        LONG.device_id,
    }
    assert (answer["total"]["accepted"], answer["total"]["gap_sequences"]) == (5, 4)
    assert answer["total"]["gaps_by_reason"][0] == {
        "key": "spool_age",
        "count": 3,
        "defects": 0,
        "with_verdict": None,
    }
    assert any(
        line.startswith("all 3 ") and line.endswith("5 1 4 10 yes")
        for line in rows(target, "ledger")
    )


class Unbalanced(ingest_service_pb2_grpc.IngestServiceServicer):
    """A server whose second page of the ledger has a spool that does not balance."""

    def GetLedger(  # noqa: N802 - the contract's name
        self, request: reads_pb2.GetLedgerRequest, _context: grpc.ServicerContext
    ) -> reads_pb2.GetLedgerResponse:
        entry = reads_pb2.LedgerEntry(device_id="a", balanced=not request.page_token)
        token = "" if request.page_token else "more"
        return reads_pb2.GetLedgerResponse(
            entries=[entry], next_page_token=token, total=reads_pb2.LedgerEntry(balanced=False)
        )


@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_books_that_do_not_balance_are_an_exit_code(json_: list[str]) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(Unbalanced(), server)  # type: ignore[abstract] # one method is called
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        done = run(f"127.0.0.1:{port}", "ledger", *json_)
    finally:
        server.stop(None)
    assert done.exit_code == 1
    assert "NO" in done.stdout or not json.loads(done.stdout)["total"]["balanced"]


def test_gaps_and_rejections_are_listed(target: str) -> None:
    found = lines(target, "gaps")
    assert [(g["gap"]["first_sequence"], g["gap"]["reason"]) for g in found] == [
        (6, "77"),
        (3, "spool_age"),
    ]
    assert [g["gap"]["first_sequence"] for g in lines(target, "gaps", "--limit", "1")] == [6]
    assert len(lines(target, "gaps", "--reason", "spool_age")) == 1
    assert any(line.endswith("3-5 spool_age") for line in rows(target, "gaps"))
    (rejected,) = lines(target, "rejections", "--reason", "CONFIDENCE_OUT_OF_RANGE")
    assert rejected["original"]["image_id"] == "image-2"
    assert any("CONFIDENCE_O" in line for line in rows(target, "rejections"))
    done = run(target, "gaps", "--reason", "unknown")
    assert done.exit_code != 0
    assert "--reason: must be one of dropped_oldest" in str(done.exception)


@pytest.mark.parametrize(
    ("of", "sequence", "kind"),
    [(spool(2), 1, "prediction"), (SPOOL, 2, "rejection"), (SPOOL, 4, "gap")],
)
def test_one_sequence_is_shown(target: str, of: Any, sequence: int, kind: str) -> None:
    (found,) = lines(target, "show", *of, str(sequence))
    assert found[kind]["device_id"] == of.device_id
    done = run(target, "show", *of, str(sequence))
    assert done.stdout.startswith(f"{kind}:\n")
    assert json.loads(done.stdout.removeprefix(f"{kind}:\n")) == found[kind]


def test_a_sequence_that_is_not_there_is_an_error(target: str) -> None:
    done = run(target, "show", *SPOOL, "7")
    assert done.exit_code != 0
    assert "NOT_COMMITTED" in str(done.exception)
