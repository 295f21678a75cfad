"""`sightline series`, `confidence`, `versions` and `frame` against a real service."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from sightline.types.v1.prediction_pb2 import BoundingBox
from typer.testing import CliRunner, Result

from ingest_service.store.duckdb.file_store import DuckDBStore
from sightline.cli.app import app
from sightline.cli.processes import ServiceProcess
from tests.unit.ingest_service.samples import detection, message, prediction, timestamp
from tests.unit.ingest_service.store_conformance import commit

CORNER = BoundingBox(x_min=0, y_min=0, x_max=8, y_max=8)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with 40 sure detections of yesterday, and 40 unsure ones of now."""
    path = tmp_path_factory.mktemp("figures") / "a.duckdb"
    now = datetime.now(UTC)
    sent = [
        prediction(
            n,
            model_version="[red]1" if n % 2 else "",
            captured_at=timestamp(now - timedelta(minutes=1, days=2 * (n <= 40))),
            defect_detected=n % 2 == 0,
            inference_time=Duration(nanos=20_000_000),
            image_width=640,
            image_height=480,
            detections=[
                detection(class_name="[b]pit", confidence=0.9 if n <= 40 else 0.4, box=CORNER)
            ],
        )
        for n in range(1, 81)
    ]
    with contextlib.closing(DuckDBStore(path)) as store:
        commit(store, message(*sent), now=lambda: now)
    with ServiceProcess(
        "ingest_service", ["--listen", "127.0.0.1:0", "--database", str(path)]
    ) as service:
        yield service.address


def run(target: str, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--target", target], env={"COLUMNS": "80"})


def answer(target: str, *words: str) -> Any:
    done = run(target, *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def rows(target: str, *words: str) -> list[str]:
    done = run(target, *words)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    return [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]


def test_a_series_has_a_line_for_each_bucket(target: str) -> None:
    parts = answer(target, "series", "--hours", "60")["buckets"]
    assert len(parts) in (60, 61)
    assert sum(part["predictions"] for part in parts) == 80
    assert parts[0]["inference_time"] is None
    short = answer(target, "series", "--hours", "0.5", "--bucket", "1.5")
    assert (short["bucket"], sum(part["defects"] for part in short["buckets"])) == (90.0, 20)
    shown = rows(target, "series")
    assert [line for line in shown if " 40 20 40 0 20" in line]
    assert sum(" 0 - 0 0 - -" in line for line in shown) == 24


def test_confidences_show_what_has_drifted(target: str) -> None:
    got = answer(target, "confidence")
    assert (got["all"]["current"][8], got["all"]["reference"][18]) == (40, 40)
    assert got["all"]["stability_index"] > got["all"]["chance_index"] > 2
    shown = rows(target, "confidence")
    assert "[b]pit 40 40 0.42 0.93 7.031 2.191 drifted" in shown
    nothing = rows(target, "confidence", "--class", "none")
    assert any(line.startswith("all 0 0 - - - -") for line in nothing)


def test_versions_are_listed_with_what_they_answered(target: str) -> None:
    got = answer(target, "versions")["versions"]
    assert [(v["model_version"], v["predictions"], v["defects"]) for v in got] == [
        ("", 40, 40),
        ("[red]1", 40, 0),
    ]
    shown = rows(target, "versions", "--model", "plates")
    assert any(line.startswith("plates [red]1 40 0 1 20") for line in shown)
    assert not any("plates" in line for line in rows(target, "versions", "--device", "nobody"))


def test_the_frame_is_drawn(target: str) -> None:
    assert answer(target, "frame")["grids"][0]["cells"][0] == 40
    shown = run(target, "frame", "--class", "[b]pit").stdout.splitlines()
    assert shown[1] == f"|@{' ' * 63}|"
    assert (len(shown), set(shown[2])) == (21, {"|", " "})
    assert shown[-1] == "40 detections in 40 predictions; 0 detections have no position"
    assert "0 detections in 40" in run(target, "frame", "--class", "none").stdout


def test_a_bucket_that_the_server_refuses_is_explained(target: str) -> None:
    done = run(target, "series", "--bucket", "90")
    assert done.exit_code == 1
    assert "bucket must be whole hours above one hour" in str(done.exception)
