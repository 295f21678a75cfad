"""A node that is made of settings."""

import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.node import EdgeNode
from edge.records import CloudReason
from edge.settings import EdgeSettings
from servicekit.errors import SightlineError
from servicekit.settings import SettingsError
from tests.fakes.inference import Reply, serving
from tests.fakes.ingest import FakeIngest
from tests.unit.edge.running_nodes import logged
from tests.unit.edge.running_nodes import process as process
from tests.unit.edge.samples import eventually
from tests.unit.vision.models import save_detector


def test_a_node_made_of_settings(tmp_path: Path) -> None:
    model = save_detector(tmp_path / "tiny.onnx")
    image = b"no picture at all"
    with FakeIngest() as ingest, serving(Reply()) as inference:
        options: dict[str, Any] = {
            "ingest_target": ingest.target,
            "inference_target": inference.target,
            "device_id": "gate-1",
            "spool_dir": tmp_path / "spool",
            "api_key": "s3cret",
            "device_model": model,
            "device_model_name": "plates",
            "device_model_version": "9",
            "device_providers": ("CPUExecutionProvider",),
            "confidence_threshold": 0.4,
            "cloud_model": "big",
            "defect_classes": ("mould",),
        }
        with EdgeNode.from_settings(EdgeSettings(**options)) as node:
            with pytest.raises(SightlineError, match="IMAGE_TYPE_UNSUPPORTED"):
                node.process(image)
            answer = node.process(np.zeros((64, 96, 3), np.uint8), "frame-1")
            (entry,) = logged(node, ingest)
        with EdgeNode.from_settings(EdgeSettings(**options, mode="cloud")) as node:
            assert node.process(image).cloud_reason is CloudReason.REQUESTED
    assert (answer.model_name, answer.model_version) == ("plates", "9")
    assert [detection.class_name for detection in answer.detections] == ["mould"]
    assert entry.defect_detected
    # Its labels were asked for, too.
    (seen,) = (call for call in inference.seen if call.request.images)
    assert seen.request.model.name == "big"
    assert seen.request.parameters.confidence_threshold == pytest.approx(0.4)
    assert seen.metadata["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("broken", ["spool_dir", "metrics_listen"])
def test_what_was_opened_is_closed_if_the_rest_cannot_be(tmp_path: Path, broken: str) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate()}

    before = threads()
    (tmp_path / "file").write_text("not a folder")
    with FakeIngest() as ingest, socket.create_server(("127.0.0.1", 0)) as taken:
        options: dict[str, Any] = {
            "ingest_target": ingest.target,
            "device_id": "gate-1",
            "spool_dir": tmp_path / "spool",
            "device_model": save_detector(tmp_path / "tiny.onnx"),
            "mode": "device",
            "device_process": True,
        }
        options[broken] = {
            "spool_dir": tmp_path / "file" / "spool",
            "metrics_listen": f"127.0.0.1:{taken.getsockname()[1]}",
        }[broken]
        with pytest.raises((OSError, SightlineError, SettingsError)):
            EdgeNode.from_settings(EdgeSettings(**options))
        ours = {"sightline-device", "detector-supervisor"}
        assert eventually(lambda: not ours & (threads() - before))


def test_settings_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeIngest() as ingest, serving(Reply()) as inference:
        for name, value in {
            "INGEST_TARGET": ingest.target,
            "INFERENCE_TARGET": inference.target,
            "SPOOL_DIR": str(tmp_path / "spool"),
            "MODE": "cloud",
            "DEFECT_CLASSES": "scratch, pit",
        }.items():
            monkeypatch.setenv(f"SIGHTLINE_EDGE_{name}", value)
        with EdgeNode.from_settings() as node:
            node.process(b"picture")
            (entry,) = logged(node, ingest)
    assert entry.defect_detected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MODE", "device", "device_model: must be given in mode device"),
        ("CLOUD_RESERVE_SECONDS", "8", "cloud_reserve_seconds: must be below timeout_seconds"),
        ("TIMEOUT_SECONDS", "0", "timeout_seconds: "),
        ("CONFIDENCE_THRESHOLD", "1.5", "confidence_threshold: "),
        ("DETECTOR", "magic", "detector: "),
        ("DEVICE_PROVIDERS", "", "device_providers: "),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"SIGHTLINE_EDGE_{name}", value)
    with pytest.raises(SettingsError, match=message):
        EdgeNode.from_settings()
