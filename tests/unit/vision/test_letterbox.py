"""Letterbox against OpenCV, bit for bit and on both ways there, and boxes there and back."""

import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision import Letterbox, letterbox_image

GREY = np.float32(114) / np.float32(255)
sides = st.integers(1, 90)
grids = st.integers(1, 4).map(lambda n: n * 32)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def opencv_letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the published rules, written down with OpenCV's own resize and border."""
    cv2 = pytest.importorskip("cv2")
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    columns, rows = max(round(width * scale), 1), max(round(height * scale), 1)
    across, down = (size[1] - columns) / 2, (size[0] - rows) / 2
    scaled = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    top, bottom = round(down - 0.1), round(down + 0.1)
    left, right = round(across - 0.1), round(across + 0.1)
    grey = (114, 114, 114)
    full = cv2.copyMakeBorder(scaled, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)
    planes: np.ndarray = full.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    return planes


def without_opencv(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the letterbox of a device without OpenCV."""
    with patch("vision.letterbox._opencv", lambda: None):
        return letterbox_image(image, size)[0]


@given(sides, sides, grids, grids)
def test_pixels_are_opencvs(width: int, height: int, rows: int, columns: int) -> None:
    image = noise(height, width)
    expected = opencv_letterbox(image, (rows, columns))
    ours, _ = letterbox_image(image, (rows, columns))
    assert ours.dtype == np.float32
    assert np.array_equal(ours, expected)
    assert np.array_equal(without_opencv(image, (rows, columns)), expected)


@pytest.mark.parametrize("shape", [(1080, 810), (720, 1280), (480, 640), (2160, 3840), (640, 640)])
def test_pixels_of_camera_sizes_are_opencvs(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    expected = opencv_letterbox(image, (640, 640))
    assert np.array_equal(letterbox_image(image, (640, 640))[0], expected)
    assert np.array_equal(without_opencv(image, (640, 640)), expected)


@pytest.mark.parametrize("view", [np.s_[:, ::-1], np.s_[::-1], np.s_[::2, 3:40], np.s_[..., ::-1]])
def test_views_are_images_too(view: tuple[slice, ...]) -> None:
    image = noise(90, 70)
    image.flags.writeable = False
    ours, _ = letterbox_image(image[view], (64, 64))
    assert np.array_equal(ours, opencv_letterbox(np.ascontiguousarray(image[view]), (64, 64)))


def test_without_opencv_numpy_does_the_work() -> None:
    program = """
import sys
sys.modules["cv2"] = None  # what the import system makes an ImportError of
import numpy as np
from vision import letterbox_image
print(letterbox_image(np.full((9, 7, 3), 255, np.uint8), (32, 32))[0].max())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1.0"), done.stderr


def test_opencv_is_imported_with_the_first_image_only() -> None:
    check = "import sys, vision; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@given(sides, sides, grids, grids, st.data())
def test_boxes_come_back(
    width: int, height: int, rows: int, columns: int, data: st.DataObject
) -> None:
    _, box = letterbox_image(noise(height, width), (rows, columns))
    across = st.floats(0, width, width=32)
    down = st.floats(0, height, width=32)
    original = np.array([[data.draw(side) for side in (across, down, across, down)]])
    scale = np.array([box.scale_x, box.scale_y] * 2)
    there = original * scale + np.array([box.pad_x, box.pad_y] * 2)
    assert np.allclose(box.to_original(there), original, atol=1e-3)
    assert (there >= 0).all()
    assert (there <= np.array([columns, rows] * 2) + 1e-9).all()


@given(sides, sides, grids, grids)
def test_the_image_fills_one_side_and_grey_the_rest(
    width: int, height: int, rows: int, columns: int
) -> None:
    white = np.full((height, width, 3), 255, dtype=np.uint8)
    batch, box = letterbox_image(white, (rows, columns))
    assert batch.shape == (1, 3, rows, columns)
    picture = batch[0, 0] == 1
    assert np.array_equal(batch == GREY, np.broadcast_to(~picture, batch.shape))
    assert picture[box.pad_y].sum() == columns or picture[:, box.pad_x].sum() == rows


def test_odd_padding_goes_right_and_down() -> None:
    _, wide = letterbox_image(noise(31, 64), (64, 64))
    _, tall = letterbox_image(noise(64, 31), (64, 64))
    assert (wide.pad_x, wide.pad_y) == (0, 16)
    assert (tall.pad_x, tall.pad_y) == (16, 0)


@given(sides, sides, grids, grids)
def test_a_stretched_image_fills_the_input(
    width: int, height: int, rows: int, columns: int
) -> None:
    cv2 = pytest.importorskip("cv2")
    image = noise(height, width)
    batch, box = letterbox_image(image, (rows, columns), stretch=True)
    scaled = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(batch[0], scaled.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    whole = box.to_original(np.array([[0, 0, columns, rows]], dtype=np.float32))
    assert whole.tolist() == [[0, 0, width, height]]


def test_boxes_are_clipped_to_the_image() -> None:
    box = Letterbox(scale_x=0.5, scale_y=0.5, pad_x=10, pad_y=0, width=100, height=50)
    boxes = np.array([[0, -5, 500, 500], [10, 0, 60, 25]], dtype=np.float32)
    restored = box.to_original(boxes)
    assert restored.tolist() == [[0, 0, 100, 50], [0, 0, 100, 50]]
    assert restored.dtype == np.float32
    assert box.to_original(np.zeros((0, 4))).shape == (0, 4)


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
        letterbox_image(image, (64, 64))
