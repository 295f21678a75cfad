"""The example, as a user runs it, against both services as real processes."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import PIL.Image

from sightline.cli.processes import ServiceProcess
from tests.unit.inference_service.tiny_onnx import colour_model
from tests.unit.vision.models import save_failing

EXAMPLE = Path(__file__).parents[3] / "examples" / "edge_node.py"


def test_images_of_a_folder_are_answered_by_device_or_cloud_and_logged(tmp_path: Path) -> None:
    colour_model(tmp_path / "models" / "colours" / "1" / "model.onnx")
    save_failing(tmp_path / "plates.onnx")  # fails on white
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, level in (("a.jpg", 0), ("b.jpg", 255), ("d.jpg", 0)):
        PIL.Image.fromarray(np.full((64, 96, 3), level, np.uint8)).save(pictures / name)
    (pictures / "c.jpg").write_bytes(b"no picture")
    database = tmp_path / "sightline.duckdb"
    ingest_flags = ["--listen", "127.0.0.1:0", "--database", str(database)]
    inference_flags = ["--listen", "127.0.0.1:0", "--model-repository", str(tmp_path / "models")]
    with (
        ServiceProcess("ingest_service", ingest_flags) as ingest,
        ServiceProcess("inference_service", inference_flags) as inference,
    ):
        settings = {
            "SIGHTLINE_EDGE_INGEST_TARGET": ingest.address,
            "SIGHTLINE_EDGE_INFERENCE_TARGET": inference.address,
            "SIGHTLINE_EDGE_DEVICE_MODEL": str(tmp_path / "plates.onnx"),
            "SIGHTLINE_EDGE_DEVICE_ID": "gate-1",
            "SIGHTLINE_EDGE_SPOOL_DIR": str(tmp_path / "spool"),
        }
        ran = subprocess.run(
            [sys.executable, str(EXAMPLE), str(pictures)],
            cwd=tmp_path,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.split(" (")[0] for line in lines[:2]] == ["a.jpg: mould", "b.jpg: red"]
    assert ["(cloud" in line for line in lines[:3]] == [False, True, False]
    assert lines[3:] == ["all committed"]
    assert "c.jpg: image is refused: the " in ran.stderr
    with duckdb.connect(str(database), read_only=True) as connection:
        rows = connection.execute(
            "SELECT image_id, model_name, source, cloud_reason FROM predictions ORDER BY sequence"
        ).fetchall()
    assert [row[:2] for row in rows] == [
        ("a.jpg", "plates"),
        ("b.jpg", "colours"),
        ("d.jpg", "plates"),
    ]
    assert [str(source).lower() for _, _, source, _ in rows] == ["device", "cloud", "device"]
