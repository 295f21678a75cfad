"""Real photographs through the whole house: device and cloud, log, spool, ship, DuckDB."""

import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from edge.records import Box
from sightline import EdgeNode, EdgeSettings
from sightline.cli.processes import ServiceProcess
from tests.photographs import photograph
from tests.unit.edge.overlap import overlap

os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
YOLO = Path(os.environ.get("SIGHTLINE_TEST_MODELS", "")) / "yolov8n_int8.onnx"
PHOTOS = ("bus.jpg", "zidane.jpg")
Found = list[tuple[str, Box]]

pytestmark = pytest.mark.skipif(
    not YOLO.is_file(), reason="SIGHTLINE_TEST_MODELS holds no yolov8n_int8.onnx"
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The store, after both photographs were answered by the device and then by the cloud."""
    folder = tmp_path_factory.mktemp("house")
    (folder / "models" / "yolov8n" / "1").mkdir(parents=True)
    (folder / "models" / "yolov8n" / "1" / "model.onnx").symlink_to(YOLO)
    store = folder / "sightline.duckdb"
    ingest_flags = ["--listen", "127.0.0.1:0", "--database", str(store)]
    inference_flags = ["--listen", "127.0.0.1:0", "--model-repository", str(folder / "models")]
    with (
        ServiceProcess("ingest_service", ingest_flags) as ingest,
        ServiceProcess("inference_service", inference_flags) as inference,
    ):
        for mode in ("device", "cloud"):
            settings = EdgeSettings.model_validate(
                {
                    "ingest_target": ingest.address,
                    "inference_target": inference.address,
                    "device_id": mode,
                    "spool_dir": folder / mode,
                    "device_model": YOLO,
                    "detector": "ultralytics",
                    "mode": mode,
                    "timeout_seconds": 60,
                }
            )
            _log_photographs(settings)
    with duckdb.connect(str(store), read_only=True) as connection:
        yield connection


def _log_photographs(settings: EdgeSettings) -> None:
    with EdgeNode.from_settings(settings) as node:
        for photo in PHOTOS:
            node.process(photograph(photo), image_id=photo)
        assert node.logger.flush(30, until="committed")


def test_every_photograph_is_in_the_store_once_from_each(
    database: duckdb.DuckDBPyConnection,
) -> None:
    rows = database.execute(
        "SELECT device_id, sequence, image_id, source, cloud_reason, image_width, image_height"
        " FROM predictions ORDER BY source, sequence"
    ).fetchall()
    sizes = {"bus.jpg": (810, 1080), "zidane.jpg": (1280, 720)}
    assert rows == [
        (source, sequence, photo, source, reason, *sizes[photo])
        for source, reason in (("cloud", "requested"), ("device", None))
        for sequence, photo in enumerate(PHOTOS, start=1)
    ]


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_store_has_the_same_objects_from_device_and_cloud(
    database: duckdb.DuckDBPyConnection, photo: str
) -> None:
    device, cloud = (_found(database, photo, source) for source in ("device", "cloud"))
    assert len(device) >= 3
    assert [name for name, _ in device] == [name for name, _ in cloud]
    for (_, one), (_, other) in zip(device, cloud, strict=True):
        assert overlap(one, other) >= 0.9


def _found(database: duckdb.DuckDBPyConnection, photo: str, source: str) -> Found:
    rows = database.execute(
        "SELECT found.class_name, found.box FROM (SELECT unnest(detections) AS found"
        " FROM predictions WHERE image_id = ? AND source = ?)",
        [photo, source],
    ).fetchall()
    return [(name, Box(**box)) for name, box in rows]
