"""Calibration on real data, from the training to the probabilities that a caller gets.

A small network learns scikit-learn's handwritten digits by heart and is far too sure of itself. A
person adds it to a repository, calibrates it on pictures, and serves it.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sightline.inference.v1 import inference_pb2

from inference_service.models.calibration import ece
from tests.integration.inference.process import InferenceStub, client, started
from vision import softmax

SIGHTLINE = [sys.executable, "-c", "from sightline.cli.app import main; main()"]
YAML = """
task: classify
labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
top_k: 10
"""
TRAINED, CALIBRATED = 80, 900  # pictures; the other 817 nobody sees before the end


@dataclass(frozen=True)
class Digits:
    """A repository with the network, and pictures that it never saw."""

    repository: Path
    calibration: Path
    """A folder of pictures for each label."""
    network: torch.nn.Module
    held_out: list[bytes]
    labels: NDArray[np.int64]

    def logits(self) -> NDArray[np.float64]:
        """Of the pictures that were held out, by torch."""
        pixels = np.stack([np.asarray(Image.open(BytesIO(data))) for data in self.held_out])
        return _logits(self.network, pixels)


class DigitsNetwork(torch.nn.Module):
    """Four layers on the colours' mean: far more than so few pictures need."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(64, 128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images.mean(dim=1))
        return logits


def _logits(network: torch.nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    images = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        created: NDArray[np.float64] = network(images).double().numpy()
    return created


def _trained(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> torch.nn.Module:
    """Return a network that knows its pictures by heart, with nothing to hold it back."""
    torch.manual_seed(0)
    network = DigitsNetwork()
    images = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    truth = torch.from_numpy(labels)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only waits for its threads
    for _ in range(400):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    torch.set_num_threads(threads)
    return network.eval()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sightline(*words: str) -> Any:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    done = subprocess.run(
        [*SIGHTLINE, "models", *words, "--json"], env=clean, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    from sklearn.datasets import load_digits  # takes a second, of each process that collects tests

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    grey = (data.images[order] * 255 / 16).round().astype(np.uint8)
    pixels, labels = np.repeat(grey[..., None], 3, axis=3), data.target[order].astype(np.int64)
    network = _trained(pixels[:TRAINED], labels[:TRAINED])
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 8, 8),),
        folder / "digits.onnx",
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        dynamo=False,
    )
    (folder / "digits.yaml").write_text(YAML)
    for number in range(TRAINED, TRAINED + CALIBRATED):
        suffix = "tif" if number % 2 else "png"
        path = folder / "calibration" / str(labels[number]) / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    held_out = [_png(each) for each in pixels[TRAINED + CALIBRATED :]]
    file, spec = str(folder / "digits.onnx"), str(folder / "digits.yaml")
    repository = folder / "models"
    created = sightline(
        *("add", file, "--name", "digits", "--spec", spec, "--repository", str(repository))
    )
    assert (created["task"], created["version"], created["output"]) == ("classify", "1", "logits")
    unseen = labels[TRAINED + CALIBRATED :]
    return Digits(repository, folder / "calibration", network, held_out, unseen)


def served(stub: InferenceStub, digits: Digits) -> NDArray[np.float64]:
    """Return what the service answers for the pictures that were held out."""
    rows = np.zeros((len(digits.held_out), 10))
    for at in range(0, len(rows), 16):
        answer = stub.infer(*digits.held_out[at : at + 16])
        for row, result in zip(rows[at : at + 16], answer.results, strict=True):
            assert len(result.classes) == 10
            for each in result.classes:
                assert each.class_name == str(each.class_id)
                row[each.class_id] = each.probability
    return rows


def surest(stub: InferenceStub, digits: Digits) -> float:
    """Return the highest probability of one picture, and check that no more is answered."""
    limited = inference_pb2.InferParameters(top_k=1)
    (result,) = stub.infer(digits.held_out[0], parameters=limited).results
    (only,) = result.classes
    return only.probability


def test_a_calibrated_network_is_as_sure_as_it_is_right(digits: Digits, tmp_path: Path) -> None:
    repository = ["--repository", str(digits.repository)]
    flags = ["--model-repository", str(digits.repository), "--repository-poll-seconds", "0.1"]
    with started(tmp_path, *flags) as server, client(server) as stub:
        raw = served(stub, digits)
        np.testing.assert_allclose(raw, softmax(digits.logits()), atol=1e-5)
        before = surest(stub, digits)
        printed = sightline(
            "calibrate", "digits", "--images", str(digits.calibration), *repository, "--write"
        )
        end = time.monotonic() + 60
        while surest(stub, digits) == before:  # until the service has taken it in
            assert time.monotonic() < end
        calibrated = served(stub, digits)

    assert printed["written"]
    assert printed["fitted_to"] + printed["after"]["pictures"] == CALIBRATED
    assert printed["before"]["temperature"] == 1
    assert printed["after"]["temperature"] > 1
    assert printed["after"]["ece"] <= printed["before"]["ece"] / 2, (
        "of pictures that were not fitted to"
    )
    assert printed["after"]["nll"] < printed["before"]["nll"]
    assert printed["after"]["accuracy"] == printed["before"]["accuracy"]

    expected = softmax(digits.logits(), printed["after"]["temperature"])
    np.testing.assert_allclose(calibrated, expected, atol=1e-5)
    assert (calibrated.argmax(axis=1) == raw.argmax(axis=1)).all()
    assert ece(calibrated, digits.labels) <= ece(raw, digits.labels) / 2
