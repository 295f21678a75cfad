"""Models that load, and models that do not."""

from pathlib import Path
from typing import Any

import pytest

from edge.commands.options import settings_with
from edge.doctor.finding import Finding, Level
from edge.doctor.model import model
from tests.unit.inference_service.failing_onnx import choosy_model
from tests.unit.inference_service.tiny_onnx import colour_model
from tests.unit.vision.models import YOLOV8, save_detector


def found(path: Path | None, **more: Any) -> dict[str, Finding]:
    settings = settings_with(device_model=path, **more)
    return {one.check: one for one in model(settings)}


def test_a_good_model_says_how_fast_it_is_and_on_what(tmp_path: Path) -> None:
    findings = found(colour_model(tmp_path / "colours.onnx"))
    assert {one.level for one in findings.values()} == {Level.OK}
    assert findings["model"].message.startswith("colours ")
    assert " ms on CPUExecutionProvider" in findings["model run"].message


def test_classes_that_the_model_lacks(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "colours.onnx")
    finding = found(path, defect_classes="red,gren")["model classes"]
    assert finding.level is Level.FAILED
    assert "has no class 'gren', did you mean green?" in finding.message
    assert found(path, cloud_label_map="x=bleu")["model classes"].level is Level.FAILED
    assert found(path, defect_classes="red,green")["model classes"].level is Level.OK
    assert "model classes" not in found(path, defect_classes="gren", cloud_labels="any")


def test_no_model_is_no_fault() -> None:
    (finding,) = found(None).values()
    assert finding.level is Level.OK


def test_a_model_that_the_mode_does_not_ask_is_not_loaded(tmp_path: Path) -> None:
    (finding,) = found(tmp_path / "none.onnx", mode="cloud").values()
    assert finding.level is Level.OK
    assert "mode cloud" in finding.message


@pytest.mark.parametrize("detector", ["onnx", "ultralytics"])
def test_a_broken_file(tmp_path: Path, detector: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x00not a model\x00" * 100)
    (finding,) = found(path, detector=detector).values()
    assert finding.level is Level.FAILED
    assert str(path) in finding.action
    assert "\n" not in finding.message


@pytest.mark.parametrize("detector", ["onnx", "ultralytics"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, detector: str) -> None:
    path = tmp_path / "best.onnx"
    path.write_text("<!doctype html><title>404</title>")
    (finding,) = found(path, detector=detector).values()
    assert "it is a web page with the title '404', not an ONNX file" in finding.message
    whole = colour_model(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (finding,) = found(path, detector=detector).values()
    assert "it is an ONNX file that is cut off" in finding.message


def test_a_model_that_talks_nonsense_when_it_sees_something(tmp_path: Path) -> None:
    output = YOLOV8.copy()
    output[4, 0] = 0.52  # with the mean of a grey image not above 1, with that of a white one
    path = save_detector(tmp_path / "best.onnx", output=output)
    finding = found(path)["model run"]
    assert finding.level is Level.FAILED
    assert "has a score of 1.3" in finding.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (finding,) = found(tmp_path / "none.onnx").values()
    assert finding.level is Level.FAILED
    assert "none.onnx" in finding.message


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "colours.onnx")
    (finding,) = found(path, device_providers="NoSuchExecutionProvider").values()
    assert finding.level is Level.FAILED
    assert "NoSuchExecutionProvider" in finding.message


def test_a_model_too_slow_for_the_budget(tmp_path: Path) -> None:
    path = colour_model(tmp_path / "colours.onnx", matmuls=30)
    findings = found(path, timeout_seconds=0.02, cloud_reserve_seconds=0.0199)
    assert findings["model run"].level is Level.WARNING
    assert "timeout_seconds" in findings["model run"].message


def test_a_model_that_loads_and_does_not_run(tmp_path: Path) -> None:
    findings = found(choosy_model(tmp_path / "choosy.onnx"))
    assert findings["model"].level is Level.OK
    assert findings["model run"].level is Level.FAILED
    assert "a run fails" in findings["model run"].message
