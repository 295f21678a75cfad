"""Masks, keypoints and rotated boxes of device and cloud in DuckDB: the same, in the same form."""

from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pytest

from sightline import EdgeNode, EdgeSettings
from sightline.cli.processes import ServiceProcess
from tests.integration.edge_ask.task_models import TASKS, save_models
from tests.unit.vision.models import save_failing

WHITE = np.full((240, 320, 3), 255, np.uint8)
RUNS = [*((task, "polygon") for task in TASKS), ("segment", "rle"), ("segment", "off")]
COLUMNS = {"segment": "masks", "pose": "keypoints", "obb": "rotated_boxes"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The store, after the device answered, and the cloud for a device that failed."""
    folder = tmp_path_factory.mktemp("tasks")
    save_models(folder / "models")
    failing = save_failing(folder / "failing.onnx")  # on a white image
    store = folder / "sightline.duckdb"
    ingest_flags = ["--listen", "127.0.0.1:0", "--database", str(store)]
    inference_flags = ["--listen", "127.0.0.1:0", "--model-repository", str(folder / "models")]
    with (
        ServiceProcess("ingest_service", ingest_flags) as ingest,
        ServiceProcess(
            "inference_service", [*inference_flags, "--default-model", "segment"]
        ) as inference,
    ):
        for task, masks in RUNS:
            own = folder / "models" / task / "1" / "model.onnx"
            for source, model in (("device", own), ("cloud", failing)):
                settings = EdgeSettings.model_validate(
                    {
                        "ingest_target": ingest.address,
                        "inference_target": inference.address,
                        "device_id": f"{source}-{task}-{masks}",
                        "spool_dir": folder / "spool" / f"{source}-{task}-{masks}",
                        "device_model": model,
                        "cloud_model": task,
                        "mask_format": masks,
                        "polygon_tolerance": 3.0,
                        "timeout_seconds": 60,
                    }
                )
                with EdgeNode.from_settings(settings) as node:
                    node.process(WHITE, image_id="white")
                    assert node.logger.flush(30, until="committed")
    with duckdb.connect(str(store), read_only=True) as connection:
        yield connection


def row(database: duckdb.DuckDBPyConnection, source: str, task: str, masks: str) -> dict[str, Any]:
    found = database.execute(
        "SELECT source, cloud_reason, image_width, image_height, detections, rotated_boxes,"
        " keypoints, masks FROM predictions_with_shapes WHERE device_id = ?",
        [f"{source}-{task}-{masks}"],
    )
    names = [column[0] for column in found.description]
    (values,) = found.fetchall()
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize(("task", "masks"), RUNS)
def test_the_cloud_stands_in_for_the_device(
    database: duckdb.DuckDBPyConnection, task: str, masks: str
) -> None:
    device, cloud = (row(database, source, task, masks) for source in ("device", "cloud"))
    assert (device.pop("source"), device.pop("cloud_reason")) == ("device", None)
    assert (cloud.pop("source"), cloud.pop("cloud_reason")) == ("cloud", "device_failed")
    assert cloud == device
    assert [found["class_name"] for found in cloud["detections"]] == ["plate", "mould"]
    column = COLUMNS[task]
    if masks == "off":
        assert cloud[column] is None
        return
    assert len(cloud[column]) == 2
    assert all(cloud[column])
    assert all(cloud[other] is None for other in COLUMNS.values() if other != column)
    if task == "segment":
        assert all(bool(mask["rle"]) == (masks == "rle") for mask in cloud["masks"])
        assert all(bool(mask["polygons"]) == (masks == "polygon") for mask in cloud["masks"])
    if task == "pose":
        assert [point["confidence"] for point in cloud["keypoints"][0]] == [0.5, 0.25]
    if task == "obb":
        assert [box["angle"] for box in cloud["rotated_boxes"]] == pytest.approx([0.4, 1.2])
