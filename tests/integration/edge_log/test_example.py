"""The example of the ultralytics loop, against a real ingest service, on a real photograph."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.edge_log.ingest import serving

EXAMPLE = Path(__file__).parents[3] / "examples" / "log_ultralytics.py"


def model() -> Path:
    if find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    folder = os.environ.get("SIGHTLINE_TEST_MODELS")
    if not folder:
        pytest.skip("SIGHTLINE_TEST_MODELS names no folder of models")
    path = Path(folder) / "yolov8n_int8.onnx"
    if not path.exists():
        pytest.skip(f"there is no {path.name} in SIGHTLINE_TEST_MODELS")
    return path


def bus() -> Path:
    from ultralytics.utils import ASSETS

    return Path(ASSETS) / "bus.jpg"


def test_what_ultralytics_finds_is_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model_file, picture = model(), bus()
    with serving(tmp_path / "ingest") as ingest:
        result = subprocess.run(
            [sys.executable, str(EXAMPLE), str(model_file), str(picture), ingest.target],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=tmp_path,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "committed=1" in result.stdout
        ingest.stop()
        ((image, name, width, height, found),) = ingest.query(
            "SELECT image_id, model_name, image_width, image_height,"
            " list_transform(detections, lambda d: d.class_name) FROM predictions"
        )
    assert (image, name, width, height) == ("bus.jpg", "yolov8n_int8", 810, 1080)
    assert found.count("bus") == 1
    assert found.count("person") >= 3
