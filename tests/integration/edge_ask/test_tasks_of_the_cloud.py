"""Answers of each task: for downscaled images as for the full one, and on the command line."""

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from edge.cloud.client import InferenceClient
from edge.cloud.types import ImageAnswer, InferParameters, ModelHint
from edge.records import Mask
from sightline.cli.app import app
from tests.integration.edge_ask.task_models import save_models
from tests.integration.inference.process import InferenceProcess, started
from vision import RleMask, decode_rle

SIZE = (1000, 640)  # width and height: scaled to 96 x 61 pixels for an input of 96 x 64


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    """Serve models whose answers do not depend on the image, only on its place in the input."""
    models = tmp_path_factory.mktemp("models")
    save_models(models)
    folder = tmp_path_factory.mktemp("service")
    flags = ("--model-repository", str(models), "--default-model", "segment")
    with started(folder, *flags) as process:
        yield process


@pytest.fixture(scope="module")
def image() -> bytes:
    noise = np.random.default_rng(0).integers(0, 100, (*SIZE[::-1], 3), np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def both(
    service: InferenceProcess, image: bytes, task: str, parameters: InferParameters
) -> tuple[ImageAnswer, ImageAnswer]:
    """Return the answers for the full and for the downscaled image."""
    hint = ModelHint(task)
    with InferenceClient(service.address) as client:
        full = client.infer([image], model=hint, parameters=parameters)
    with InferenceClient(service.address, downscale=True) as client:
        until = time.monotonic() + 30
        while not (small := client.infer([image], model=hint, parameters=parameters)).bytes_saved:
            assert time.monotonic() < until, "the client does not learn the model's size"
            time.sleep(0.01)
    (one,), (other,) = full.results, small.results
    assert (one.image_width, one.image_height) == (other.image_width, other.image_height) == SIZE
    assert len(one.detections) == len(other.detections) == 2
    for ours, theirs in zip(other.detections, one.detections, strict=True):
        assert ours.class_name == theirs.class_name
        assert ours.box is not None
        assert theirs.box is not None
        sides = ("x_min", "y_min", "x_max", "y_max")
        assert [getattr(ours.box, side) for side in sides] == pytest.approx(
            [getattr(theirs.box, side) for side in sides], abs=1.5
        )
    return one, other


def drawn(mask: Mask | None) -> np.ndarray:
    assert mask is not None
    if mask.rle:
        assert (mask.width, mask.height) == SIZE
        return decode_rle(RleMask(mask.height, mask.width, mask.rle))
    pixels = np.zeros(SIZE[::-1], np.uint8)
    for polygon in mask.polygons:
        cv2.fillPoly(pixels, [np.round(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
    return pixels > 0


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_masks(service: InferenceProcess, image: bytes, form: str) -> None:
    parameters = InferParameters(mask_format=form, polygon_tolerance=1.0)  # type: ignore[arg-type]
    full, small = both(service, image, "segment", parameters)
    for one, other in zip(full.detections, small.detections, strict=True):
        exact, found = drawn(one.mask), drawn(other.mask)
        assert exact.sum() > 10_000
        assert (exact & found).sum() >= 0.95 * (exact | found).sum()  # a pixel sent is 10 x 10
        assert other.mask is not None
        assert bool(other.mask.rle) == (form == "rle")


def test_keypoints(service: InferenceProcess, image: bytes) -> None:
    full, small = both(service, image, "pose", InferParameters())
    for one, other in zip(full.detections, small.detections, strict=True):
        assert len(other.keypoints) == 2
        for ours, theirs in zip(other.keypoints, one.keypoints, strict=True):
            assert (ours.x, ours.y) == pytest.approx((theirs.x, theirs.y), abs=0.5)
            assert ours.confidence == theirs.confidence


def test_rotated_boxes(service: InferenceProcess, image: bytes) -> None:
    full, small = both(service, image, "obb", InferParameters())
    for one, other in zip(full.detections, small.detections, strict=True):
        ours, theirs = other.rotated_box, one.rotated_box
        assert ours is not None
        assert theirs is not None
        assert ours.angle == theirs.angle
        for name in ("center_x", "center_y", "width", "height"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=0.5)


@pytest.mark.parametrize(
    ("task", "column", "shown"),
    [
        ("segment", "mask", r"1 polygons?, \d+ points"),
        ("pose", "keypoints", "2"),
        ("obb", "rotated box", r"\d+\.\d, \d+\.\d: \d+\.\d x \d+\.\d, 22\.9°"),
    ],
)
def test_the_command_shows_what_the_task_has(
    service: InferenceProcess,
    image: bytes,
    task: str,
    column: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "part.png").write_bytes(image)
    words = ["infer", str(tmp_path / "part.png"), "--target", service.address, "--model", task]
    table = CliRunner().invoke(app, words, prog_name="sightline")
    assert table.exit_code == 0, table.output
    assert column in table.output
    assert re.search(shown, table.output)
    others = {"mask", "keypoints", "rotated box"} - {column}
    assert not any(other in table.output for other in others)
    line = CliRunner().invoke(app, [*words, "--json"], prog_name="sightline")
    first = json.loads(line.output)["detections"][0]
    if task == "segment":
        (polygon,) = first["mask"]["polygons"]
        assert len(polygon) >= 6
        assert (first["mask"]["rle"], first["rotated_box"], first["keypoints"]) == ("", None, [])
    if task == "pose":
        assert first["keypoints"][0].keys() == {"x", "y", "confidence"}
    if task == "obb":
        assert first["rotated_box"]["angle"] == pytest.approx(0.4)
