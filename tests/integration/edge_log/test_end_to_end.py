"""The logger against a real ingest service: what the store says in the end."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from sightline.ingest.v1 import ingest_pb2, ingest_service_pb2, ingest_service_pb2_grpc

from edge.log.logger import PredictionLogger
from edge.options import LogOptions
from edge.records import Box, Detection, Prediction
from tests.integration.edge_log.ingest import Ingest, serving
from tests.unit.edge.samples import eventually, prediction

QUICK = LogOptions(batch_timeout_seconds=0.05)


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    with serving(tmp_path / "ingest") as service:
        yield service


def logger(ingest: Ingest, folder: Path) -> PredictionLogger:
    return PredictionLogger(ingest.target, device_id="gate-1", spool_dir=folder, options=QUICK)


def test_a_prediction_is_stored_as_it_was_logged(ingest: Ingest, tmp_path: Path) -> None:
    with logger(ingest, tmp_path / "spool") as log:
        log.log(prediction("bus.jpg"), wait="committed", timeout=30)
        spool_id = log.stats().spool_id
    ingest.stop()
    assert ingest.query(
        "SELECT device_id, spool_id, sequence, image_id, image_width, image_height, model_name,"
        " model_version, source, cloud_reason, inference_seconds"
        " FROM predictions"
    ) == [("gate-1", spool_id, 1, "bus.jpg", 1280, 720, "yolov8n", "8.4", "device", None, 0.012)]
    assert ingest.query(
        "SELECT defect_detected, map_entries(labels), trace_id FROM predictions"
    ) == [(False, [{"key": "line", "value": "3"}], "")]
    assert ingest.query("SELECT unnest(detections, recursive := true) FROM predictions") == [
        (0, "person", pytest.approx(0.9), 1.5, 2.5, 100.25, 200.5, 7),
        (5, "bus", 0.5, 0.0, 0.0, 640.0, 480.0, None),
    ]


def test_what_breaks_a_rule_is_kept_and_the_rest_lands(ingest: Ingest, tmp_path: Path) -> None:
    inside_out = Detection(0, "car", 0.5, Box(9.0, 0.0, 1.0, 1.0))
    with logger(ingest, tmp_path / "spool") as log:
        log(prediction("good"))
        log(Prediction("nan", "m", detections=(Detection(0, "car", math.nan),)))
        log(Prediction("", "m"))
        log(Prediction("box", "m", detections=(inside_out,)))
        log(prediction("good too"))
        assert log.flush(30, until="committed")
        stats = log.stats()
    assert (stats.committed, stats.rejected, stats.dropped) == (5, 3, {})
    ingest.stop()
    assert ingest.query("SELECT image_id FROM predictions ORDER BY sequence") == [
        ("good",),
        ("good too",),
    ]
    assert ingest.query("SELECT sequence FROM rejected_predictions ORDER BY sequence") == [
        (2,),
        (3,),
        (4,),
    ]
    assert ingest.query("SELECT balanced FROM ledger") == [(True,)]


def test_a_store_that_was_replaced(ingest: Ingest, tmp_path: Path) -> None:
    with logger(ingest, tmp_path / "spool") as log:
        for number in range(10):
            log(prediction(str(number)))
        assert log.flush(30, until="committed")
        ingest.stop()
        ingest.database.unlink()
        ingest.database.with_name(f"{ingest.database.name}.mark").unlink()
        ingest.start()
        log(prediction("after"))
        assert log.flush(60, until="committed")
        log(prediction("and on"))
        assert log.flush(60, until="committed")
    ingest.stop()
    assert ingest.query("SELECT sequence, image_id FROM predictions ORDER BY 1") == [
        (11, "after"),
        (12, "and on"),
    ]
    assert ingest.query("SELECT first_sequence, last_sequence, lower(reason) FROM gaps") == [
        (1, 10, "released")
    ]
    assert ingest.query("SELECT balanced FROM ledger") == [(True,)]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_spool_that_was_put_back_loses_nothing_new(
    ingest: Ingest, tmp_path: Path, what: str
) -> None:
    spool, backup = tmp_path / "spool", tmp_path / "backup"
    with logger(ingest, spool) as log:
        log.log(prediction("first"), wait="committed", timeout=30)
        assert log.close()
    shutil.copytree(spool, backup)
    with logger(ingest, spool) as log:
        for number in range(5):
            log(prediction(f"forgotten {number}"))
        assert log.flush(30, until="committed")
    if what == "folder":
        shutil.rmtree(spool)
        backup.rename(spool)
    else:
        shutil.copyfile(backup / "spool.db", spool / "spool.db")
    with logger(ingest, spool) as log:
        for number in range(9):
            log(prediction(f"new {number}"))
        assert log.flush(30, until="committed")
    ingest.stop()
    assert ingest.query("SELECT count(*), count(DISTINCT image_id) FROM predictions") == [(15, 15)]
    assert ingest.query("SELECT bool_and(balanced) FROM ledger") == [(True,)]
    assert ingest.query("SELECT count(*) FROM gaps") == [(0,)]


def test_a_bare_header_is_a_stream(ingest: Ingest) -> None:
    """Send a stream as the shipper does to find out if a prediction causes an error."""
    header = ingest_pb2.LogHeader(
        device_id="gate-1", spool_id="0190a0de-0000-7000-8000-000000000001"
    )
    request = ingest_service_pb2.PredictionLogRequest(header=header)
    with grpc.insecure_channel(ingest.target) as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        answer = stub.PredictionLog(iter([request]), timeout=30)
    assert answer.committed_through == 0


def test_an_outage(ingest: Ingest, tmp_path: Path) -> None:
    with logger(ingest, tmp_path / "spool") as log:
        for number in range(50):
            log(prediction(str(number)))
        assert log.flush(30, until="committed")
        ingest.stop()
        for number in range(50, 100):
            log(prediction(str(number)))
        assert log.flush(30)
        assert eventually(lambda: log.stats().last_error is not None, 30)
        ingest.start()
        assert log.flush(60, until="committed")
        assert log.stats().last_error is None
    ingest.stop()
    assert ingest.query(
        "SELECT count(*), count(DISTINCT image_id), max(sequence) FROM predictions"
    ) == [(100, 100, 100)]
