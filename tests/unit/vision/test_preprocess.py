"""A classifier's input against torchvision's transforms, bit for bit."""

import tracemalloc
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision import Interpolation, Preprocess, preprocess_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
sides = st.integers(1, 60)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def torchvisions(image: np.ndarray, preprocess: Preprocess, size: tuple[int, int]) -> Any:
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode(preprocess.interpolation.value)
    steps = [
        transforms.Resize(preprocess.resize or min(size), interpolation=mode),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(preprocess.mean, preprocess.std),
    ]
    return transforms.Compose(steps)(Image.fromarray(image)).numpy()[None]


@pytest.mark.slow
@settings(deadline=None)  # the first example imports torchvision
@given(
    sides,
    sides,
    st.tuples(sides, sides),
    st.none() | sides | st.tuples(sides, sides),
    st.sampled_from(Interpolation),
)
def test_inputs_are_torchvisions(
    height: int,
    width: int,
    size: tuple[int, int],
    resize: int | tuple[int, int] | None,
    interpolation: Interpolation,
) -> None:
    preprocess = Preprocess(resize=resize, interpolation=interpolation, mean=MEAN, std=STD)
    image = noise(height, width)
    result = preprocess_image(image, preprocess, size)
    assert result.dtype == np.float32
    assert result.shape == (1, 3, *size)
    assert np.array_equal(result, torchvisions(image, preprocess, size))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1080, 810), (720, 1280), (256, 256), (100, 2000)])
@pytest.mark.parametrize(
    ("preprocess", "size"),
    [
        (Preprocess(232, (224, 224), Interpolation.BILINEAR, MEAN, STD), (224, 224)),
        (Preprocess(384, (380, 380), Interpolation.BICUBIC, MEAN, STD), (380, 380)),
        (Preprocess(resize=(200, 300)), (200, 300)),
        (Preprocess(), (224, 224)),
    ],
)
def test_inputs_of_real_sizes_are_torchvisions(
    shape: tuple[int, int], preprocess: Preprocess, size: tuple[int, int]
) -> None:
    image = noise(*shape)
    assert np.array_equal(
        preprocess_image(image, preprocess, size), torchvisions(image, preprocess, size)
    )


@pytest.mark.parametrize("shape", [(1, 16384), (16384, 3), (7, 5000)])
@pytest.mark.parametrize("interpolation", Interpolation)
def test_a_line_does_not_become_gigabytes(
    shape: tuple[int, int], interpolation: Interpolation
) -> None:
    image, preprocess = noise(*shape), Preprocess(40, (32, 36), interpolation)
    with patch("vision.preprocess._MAX_RESIZED", 0):
        cut_first = preprocess_image(image, preprocess, (32, 36))
    assert np.abs(cut_first - preprocess_image(image, preprocess, (32, 36))).max() <= 1.01 / 255
    tracemalloc.start()
    preprocess_image(image, Preprocess(256), (224, 224))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_by_default_levels_lie_in_0_to_1() -> None:
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    assert (
        preprocess_image(white, Preprocess(), (32, 32)).tolist() == np.ones((1, 3, 32, 32)).tolist()
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_what_is_no_rgb_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        preprocess_image(image, Preprocess(), (64, 64))


def test_a_crop_that_is_not_the_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop must be the input's size \[64, 64\]"):
        preprocess_image(noise(8, 8), Preprocess(crop=(32, 32)), (64, 64))
