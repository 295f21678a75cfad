"""Tests of the inference service with the real tritonclient and perf_analyzer.

They run in their own processes, because their messages register the same names as ours.
"""

import csv
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from models.plates import make_plate, to_jpeg
from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from sightline.cli.processes import ServiceProcess
from tests.compat.conftest import ROOT
from tests.integration.inference.waiting_service import MODULE
from tests.unit.inference_service.tiny_onnx import colour_model
from vision import OnnxYolo, decode_image

SCRIPT = Path(__file__).parent / "triton/client.py"
PLATES = ROOT / "models/repository/plates"


@dataclass(frozen=True)
class Served:
    """A server that accepts one API key."""

    service: ServiceProcess
    key: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tritonclient")
    (folder / "models").mkdir()
    (folder / "models/plates").symlink_to(PLATES)
    colour_model(folder / "models/slow/1/model.onnx", wait_seconds=0.3, side=320)
    key, _ = KeyFile(folder / "keys.db").create("triton", devices=["*"], scopes=[Scope.INFER])
    flags = [
        *("--listen", "127.0.0.1:0", "--model-repository", str(folder / "models")),
        *("--default-model", "plates", "--api-keys-file", str(folder / "keys.db")),
    ]
    with ServiceProcess(MODULE, flags) as service:
        yield Served(service, key)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    values = np.random.default_rng(0).random((1, 3, 320, 320), dtype=np.float32)
    np.save(folder / "tensor.npy", values)
    (folder / "part.jpg").write_bytes(to_jpeg(make_plate(3).image))
    return folder


@pytest.fixture(scope="module")
def report(tritonclient: str, served: Served, folder: Path) -> Any:
    command = [tritonclient, str(SCRIPT), served.service.address, str(folder), served.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def runtimes_own(batch: Any) -> Any:
    """Return ONNX Runtime's own answer, with the service's options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = PLATES / "1/model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch})[0]


def test_health(report: Any) -> None:
    assert report["health"] == {
        "live": True,
        "ready": True,
        "model": True,
        "version": True,
        "nobody": False,
    }


def test_descriptions(report: Any) -> None:
    described = report["descriptions"]
    assert described["server"]["name"] == "sightline"
    assert described["server"]["extensions"] == ["model_configuration", "statistics"]
    metadata = described["metadata"]
    assert (metadata["name"], metadata["versions"]) == ("plates", ["1"])
    assert metadata["inputs"] == [
        {"name": "images", "datatype": "FP32", "shape": ["-1", "3", "320", "320"]}
    ]
    assert [output["name"] for output in metadata["outputs"]] == ["output0"]
    config = described["config"]["config"]
    assert (config["name"], config["platform"]) == ("plates", "onnxruntime_onnx")
    assert config["max_batch_size"] == 16
    assert config["input"] == [
        {"name": "images", "data_type": "TYPE_FP32", "dims": ["3", "320", "320"]}
    ]
    assert config["output"][0]["data_type"] == "TYPE_FP32"


def test_a_tensor_in_and_out_to_the_bit(report: Any, folder: Path) -> None:
    expected = runtimes_own(np.load(folder / "tensor.npy"))
    assert np.array_equal(np.load(folder / "of_tensor.npy"), expected)
    assert report["answers"] == {"model": ["plates", "1", "seven"], "compressed": True}
    assert report["loop"]["equal"] == 8
    assert report["loop"]["counted"] >= 8


def test_images_in(report: Any, folder: Path) -> None:
    detector = OnnxYolo.load(PLATES / "1/model.onnx")
    prepared, _ = detector.prepare(decode_image((folder / "part.jpg").read_bytes()))
    expected = np.concatenate([runtimes_own(prepared)] * 2)
    assert np.array_equal(np.load(folder / "of_pictures.npy"), expected)


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("model", "NOT_FOUND", "model 'nobody' is not loaded"),
        ("version", "NOT_FOUND", "no version '9'"),
        ("shape", "INVALID_ARGUMENT", "inputs[0].shape must be [N, 3, 320, 320]"),
        ("datatype", "INVALID_ARGUMENT", "inputs[0].datatype must be FP32"),
        ("input", "INVALID_ARGUMENT", "inputs[0].name must be images"),
        ("output", "INVALID_ARGUMENT", "outputs[0].name must be"),
        ("picture", "INVALID_ARGUMENT", "raw_input_contents[0][0] is refused"),
        ("sequence", "INVALID_ARGUMENT", "parameters.sequence_id"),
        ("metadata", "NOT_FOUND", "model 'nobody' is not loaded"),
        ("config", "NOT_FOUND", "model 'nobody' is not loaded"),
        ("client_timeout", "DEADLINE_EXCEEDED", ""),
        ("timeout", "DEADLINE_EXCEEDED", ""),
        ("no_key", "UNAUTHENTICATED", "authorization"),
        ("bad_key", "UNAUTHENTICATED", ""),
    ],
)
def test_errors(report: Any, case: str, code: str, message: str) -> None:
    status, text = report["refusals"][case]
    assert status == f"StatusCode.{code}"
    assert message in text


def test_perf_analyzer(perf_analyzer: str, served: Served, tmp_path: Path) -> None:
    report = tmp_path / "report.csv"
    command = [
        *(perf_analyzer, "-m", "plates", "-i", "grpc", "-u", served.service.address),
        *("-H", f"authorization:Bearer {served.key}", "-b", "2"),
        *("--concurrency-range", "4", "--request-count", "40", "-f", str(report)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(report.open())
    assert float(row["Inferences/Second"]) > 0
    assert float(row["Server Compute Infer"]) > 0  # it has read the server's statistics
