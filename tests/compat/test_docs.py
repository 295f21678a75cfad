"""Tests that run the commands of the documentation as they are printed."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.plates import make_plate, to_jpeg
from sightline.cli.processes import ServiceProcess
from tests.default_ports import moved
from tests.pages import blocks
from tests.unit.vision.models import save_segmenter

ROOT = Path(__file__).parents[2]
PAGES = {"ingest": "how-to/call-ingest.md", "inference": "how-to/call-inference.md"}


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Serve the demo's model and one that segments, whose answer is always the same."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models" / "repository" / "plates", models / "plates")
    (models / "parts" / "1").mkdir(parents=True)
    rows = np.array([[48, 32, 32, 24, 0.875, 0, 1]], np.float32).T
    triangle = np.tri(16, 24, 4, dtype=np.float32)[None] - 0.5
    save_segmenter(models / "parts" / "1" / "model.onnx", rows, triangle, first="rows")
    flags = ["--listen", "127.0.0.1:0", "--model-repository", str(models)]
    with ServiceProcess("inference_service", [*flags, "--default-model", "plates"]) as service:
        yield service


def commands(service: str) -> list[str]:
    """Return the grpcurl blocks of a service's page."""
    started, *rest = blocks(PAGES[service])
    assert started.startswith(f"sightline serve {service} ")
    assert all("grpcurl" in block for block in rest)
    return rest


@pytest.mark.parametrize("name", PAGES)
def test_every_grpcurl_command_works(
    name: str, grpcurl: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    service: ServiceProcess = request.getfixturevalue(name)
    (tmp_path / "part.jpg").write_bytes(to_jpeg(make_plate(3).image))
    page_commands = commands(name)
    assert len(page_commands) >= 5
    for command in page_commands:
        here = moved(command, **{name: service.address})
        done = subprocess.run(
            ["bash", "-c", here],
            cwd=tmp_path,
            env={"PATH": f"{Path(grpcurl).parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_logging_twice_doubles_nothing(
    grpcurl: str, ingest: ServiceProcess, tmp_path: Path
) -> None:
    command, _ = [command for command in commands("ingest") if "PredictionLog\n" in command]
    command = moved(command, ingest=ingest.address).replace("gate-1", "gate-twice")
    answers = [
        subprocess.run(
            ["bash", "-c", command],
            env={"PATH": f"{Path(grpcurl).parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert '"accepted": "2"' in answers[0]
    assert '"duplicates": "2"' in answers[1]


def test_shapes_are_logged_and_come_back(grpcurl: str, ingest: ServiceProcess) -> None:
    _, log = [command for command in commands("ingest") if "PredictionLog\n" in command]
    answer = typed(grpcurl, log.replace("gate-2", "gate-shapes"), ingest=ingest.address)
    assert (answer["accepted"], answer.get("rejected")) == ("3", None)
    listing = next(command for command in commands("ingest") if "ListPredictions\n" in command)
    filter_ = re.sub(r"-d '.*?'", """-d '{"filter": {"deviceIds": ["gate-shapes"]}}'""", listing)
    answer = typed(grpcurl, filter_, ingest=ingest.address)
    sent = json.loads(re.findall(r'\{"predictions".*\}(?=\')', log, re.DOTALL)[0])["predictions"]
    stored = [row["prediction"]["detections"] for row in reversed(answer["predictions"])]
    assert stored == [row["detections"] for row in sent]


def test_a_model_that_segments_answers_as_the_page_shows(
    grpcurl: str, inference: ServiceProcess, tmp_path: Path
) -> None:
    (tmp_path / "part.jpg").write_bytes(to_jpeg(make_plate(3).image))
    command = next(command for command in commands("inference") if "maskFormat" in command)
    answer = typed(grpcurl, command, tmp_path, inference=inference.address)
    (shown,) = map(json.loads, blocks(PAGES["inference"], "json"))
    assert answer["modelName"] == "parts"
    assert answer["results"][0]["detections"] == [shown]


def typed(grpcurl: str, command: str, cwd: Path | None = None, **addresses: str) -> dict[str, Any]:
    """Run a command of a page, with the address of its service; return its answer."""
    done = subprocess.run(
        ["bash", "-c", moved(command, **addresses)],
        cwd=cwd,
        env={"PATH": f"{Path(grpcurl).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
