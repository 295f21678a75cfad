"""Tests that run the commands of the pages for operators as they are printed.

docs: how-to/backup.md, how-to/query.md, how-to/export.md, how-to/retention.md, how-to/clocks.md,
how-to/monitor.md and how-to/models.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import duckdb
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from sightline import Box, Detection, Prediction, PredictionLogger
from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import ROOT
from tests.default_ports import NOBODY
from tests.pages import DOCS, blocks

PAGES = ("backup", "query", "export", "retention", "clocks", "monitor", "models")


class Desk:
    """A folder with a model, and `sightline` on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "bin/sightline"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nfrom sightline.cli.app import main\nmain()\n")
        program.chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
        self.env = {
            **clean,
            "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}",
            "SIGHTLINE_INGEST_LISTEN": "127.0.0.1:0",
            "SIGHTLINE_EDGE_INGEST_TARGET": NOBODY,
            "SIGHTLINE_EDGE_INFERENCE_TARGET": NOBODY,
        }

    def type(self, block: str) -> str:
        """Run a block to its end, and return its stdout."""
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def serving(self, block: str, log: IO[str] | None = None) -> Iterator[dict[str, str]]:
        """Run a block that serves, with its log in a file, and yield its line about readiness."""
        with subprocess.Popen(
            ["bash", "-euc", f"exec {block.strip()}"],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as service:
            assert service.stdout
            ready = json.loads(service.stdout.readline())
            self.env["SIGHTLINE_EDGE_INGEST_TARGET"] = ready["address"]
            yield ready
            service.terminate()
            assert service.wait(30) == 0

    def logger(self, ingest: str) -> PredictionLogger:
        """Return the logger of a device of this folder."""
        return PredictionLogger(ingest, device_id="gate-1", spool_dir=self.folder / "spool")

    def database(self) -> Path:
        """Make `sightline.duckdb` with ten predictions, one of which breaks a rule."""
        database = self.folder / "sightline.duckdb"
        flags = ["--listen", "127.0.0.1:0", "--database", str(database)]
        detection = Detection(1, "pit", 0.95, Box(1, 2, 3, 4))
        with (
            ServiceProcess("ingest_service", flags) as service,
            self.logger(service.address) as log,
        ):
            for number in range(10):
                confident = Detection(1, "pit", 2.0, None) if number == 9 else detection
                log(Prediction(f"part-{number}", "plates", detections=(confident,)))
            assert log.flush(20, until="committed")
        return database


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_every_page_with_commands_is_tested_here() -> None:
    counts = {page: len(blocks(f"how-to/{page}.md")) for page in PAGES}
    assert counts == dict(zip(PAGES, (2, 3, 1, 1, 1, 5, 2), strict=True))


def test_a_backup_is_taken_queried_and_put_back(desk: Desk) -> None:
    backup, restore = blocks("how-to/backup.md")
    *_, query = blocks("how-to/query.md")
    database = desk.database()
    assert query.startswith(backup.strip())
    with desk.serving(f"sightline serve ingest --database {database}"):
        assert re.search(r"gate-1\W+9\b", desk.type(query))
    for file in desk.folder.glob("sightline.duckdb*"):
        file.unlink()
    assert json.loads(desk.type(restore))["predictions"] == 9
    with duckdb.connect(str(database), read_only=True) as connection:
        assert connection.sql("SELECT count(*) FROM predictions").fetchone() == (9,)


def test_a_running_service_is_asked_with_sql_and_from_python(desk: Desk) -> None:
    table, parquet, _ = blocks("how-to/query.md")
    programs = blocks("how-to/query.md", "python")
    database = desk.database()
    with desk.serving(f"sightline serve ingest --database {database}"):
        assert re.search(r"gate-1\W+9\b", desk.type(table))
        desk.type(parquet)
        assert pq.read_table(desk.folder / "images.parquet").num_rows == 9
        counts = []
        for program in programs:
            if "to_pandas" in program and find_spec("pandas") is None:
                continue  # no extra installs it
            (desk.folder / "program.py").write_text(program)
            counts.append(desk.type("python program.py"))
        assert "('gate-1', 9)" in counts[0]
        assert all(re.search(r"gate-1\W+9\b", text) for text in counts)


FETCH = """
import json, sys
sys.modules.update(dict.fromkeys(("pytz", "pandas", "polars")))  # no extra installs them
import duckdb
database, *queries = json.load(sys.stdin)
with duckdb.connect(database, read_only=True) as connection:
    rows = [connection.sql(query).fetchall() for query in queries]
print(json.dumps(rows, default=str))
"""


def test_every_query_of_the_pages_runs_in_python_as_the_extra_installs_it(
    desk: Desk,
) -> None:
    database = str(desk.database())
    (export,) = blocks("how-to/export.md")
    desk.type(export)
    pages = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    queries = {page: found for page in pages if (found := blocks(page, "sql"))}
    assert {"how-to/query.md", "how-to/export.md", "reference/schema.md"} <= queries.keys()
    texts = [text for found in queries.values() for text in found]
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        input=json.dumps([database, *texts]),
        cwd=desk.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(zip(texts, json.loads(done.stdout), strict=True))

    def of(word: str) -> list[list[object]]:
        (text,) = (one for one in queries["how-to/query.md"] if word in one)
        found: list[list[object]] = rows[text]
        return found

    assert len(of("captured_at_utc")) == len(of("by_server_utc")) == 9  # a row for each stored one
    assert of("rejected_predictions") == [
        ["CONFIDENCE_OUT_OF_RANGE", "detections[0].confidence", 1]
    ]
    assert of("ledger") == []
    assert [count for _, _, count in rows[queries["how-to/export.md"][0]]] == [9]


def test_a_device_without_verdicts_has_no_count_of_defects() -> None:
    (query,) = [query for query in blocks("how-to/query.md", "sql") if " AS defects" in query]
    with duckdb.connect() as connection:
        connection.sql("CREATE TABLE predictions (device_id TEXT, defect_detected BOOLEAN)")
        connection.sql("ALTER TABLE predictions ADD COLUMN captured_at TIMESTAMP DEFAULT now()")
        connection.sql(
            "INSERT INTO predictions (device_id, defect_detected) VALUES ('none', NULL),"
            " ('good', false), ('bad', true), ('bad', true), ('bad', NULL)"
        )
        rows = connection.sql(query).fetchall()
    counted = {device: (pictures, defects) for device, _, pictures, defects in rows}
    assert counted == {"none": (1, None), "good": (1, 0), "bad": (3, 2)}


def test_an_export_is_read(desk: Desk) -> None:
    (export,) = blocks("how-to/export.md")
    (query,) = blocks("how-to/export.md", "sql")
    desk.database()
    desk.type(export)
    there = query.replace("DIR", str(desk.folder / "DIR"))
    ((_, device, count),) = duckdb.sql(there).fetchall()
    assert (device, count) == ("gate-1", 9)


def test_what_a_wrong_clock_did_is_corrected(desk: Desk) -> None:
    (readmit,) = blocks("how-to/clocks.md")
    (retain,) = blocks("how-to/retention.md")
    desk.database()
    assert json.loads(desk.type(readmit))["readmitted"] == 0
    with desk.serving(retain):
        assert json.loads(desk.type("sightline stats --json"))["total_predictions"] == 9


def test_a_model_is_checked_added_listed_and_calibrated(desk: Desk) -> None:
    add, calibrate = blocks("how-to/models.md")
    model = desk.folder / "best.onnx"
    shutil.copy(ROOT / "models/repository/plates/1/model.onnx", model)
    (desk.folder / "models/repository").mkdir(parents=True)
    assert "parts" in desk.type(add)
    shutil.rmtree(desk.folder / "models/repository/parts")
    folder = desk.folder / "models/repository/parts/1"
    folder.mkdir(parents=True)
    _classifier(folder)
    _labelled(desk.folder / "labelled")
    assert "temperature" in desk.type(calibrate)
    assert "temperature" in (folder / "model.yaml").read_text()


def _classifier(folder: Path) -> None:
    """Write an overconfident classifier of bright and dark images."""
    side = 8
    weights = np.array([[-40, 40], [-40, 40], [-40, 40]], np.float32)
    constants = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array([60, -60], np.float32), "b"),
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
    ]
    shapes = [("images", [1, 3, side, side]), ("scores", [1, 2])]
    images, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes
    )
    graph = helper.make_graph(nodes, "bright", [images], [scores], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "model.yaml").write_text("task: classify\nlabels: [dark, bright]\ntop_k: 2\n")


def _labelled(folder: Path) -> None:
    """Write images of both classes, some of them with the wrong brightness."""
    random = np.random.default_rng(0)
    for label, middle in (("dark", 110), ("bright", 145)):
        (folder / label).mkdir(parents=True)
        for number, level in enumerate(random.normal(middle, 30, 60).clip(0, 255)):
            Image.new("RGB", (8, 8), (int(level),) * 3).save(folder / label / f"{number}.png")


def test_the_metrics_and_the_probe_of_the_page_are_served(desk: Desk) -> None:
    fleet, figures, serve, probe, _ = blocks("how-to/monitor.md")
    assert ":9464" in serve
    with desk.serving(serve.replace(":9464", ":0")) as ready:
        address = ready["metrics_address"]
        shown = desk.type(fleet)
        assert "0 devices, 0 of them silent for over 1 min" in shown
        assert "0 spools" in shown
        assert "0 detections in 0 predictions" in desk.type(figures)
        assert desk.type(probe.replace("127.0.0.1:9464", address)) == "ready\n"
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            assert b"sightline_ingest_predictions_total 0.0" in page.read()


@pytest.mark.parametrize("level", ["info", "warning"])
def test_a_level_decides_what_is_logged(desk: Desk, level: str) -> None:
    *_, serve = blocks("how-to/monitor.md")
    with (desk.folder / "service.log").open("w") as log:
        block = serve.replace("warning", level)
        with desk.serving(block, log) as ready, desk.logger(ready["address"]) as node:
            node(Prediction("part", "plates"), wait="committed", timeout=60)
    lines = [json.loads(line) for line in (desk.folder / "service.log").read_text().splitlines()]
    shown = {"info"} if level == "info" else set()
    assert {line["level"] for line in lines} == shown
    assert any(line["logger"] == "access" for line in lines) == (level == "info")
