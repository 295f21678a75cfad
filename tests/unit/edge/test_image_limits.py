"""The settings that bound the images of a device, where they take effect."""

import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from edge import assemble
from edge.detect.child import pickled
from edge.detect.limits import DEVICE_LIMITS
from edge.device_model import _factory, load_detector
from edge.settings import EdgeSettings
from servicekit.errors import SightlineError
from tests.unit.vision.models import save_detector


def settings(**values: object) -> EdgeSettings:
    return EdgeSettings.model_validate(values)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    return path


def test_the_detector_of_a_device_has_the_limits_of_its_settings(
    image: Path, tmp_path: Path
) -> None:
    model = save_detector(tmp_path / "model.onnx")
    few = settings(mode="device", device_model=model, max_image_pixels=23)
    detectors = [load_detector(few), pickle.loads(pickled(_factory(few, model)))()]
    for detector in detectors:
        assert detector is not None
        with pytest.raises(SightlineError, match="allowed are at most 65535 per side and 23"):
            detector.detect(image)
    enough = load_detector(few.model_copy(update={"max_image_pixels": 24}))
    assert enough is not None
    assert enough.detect(image).image_width == 6


def test_the_client_of_a_device_has_the_limits_of_its_settings(image: Path) -> None:
    client = assemble.client(settings(mode="cloud", max_image_bytes=9))
    assert client is not None
    with client, pytest.raises(SightlineError, match="IMAGE_TOO_LARGE"):
        client.prepare([image])


@pytest.mark.parametrize("name", ["max_image_bytes", "max_image_pixels"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        settings(**{name: 0})
    assert settings().image_limits == DEVICE_LIMITS
