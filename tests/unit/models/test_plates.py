"""The plate generator: the same seed gives the same plate, and its boxes are true."""

import io
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from models.defects import PAINTERS, VISIBLE
from models.plates import (
    CLASS_NAMES,
    FRAMES_PER_CAMERA,
    Plate,
    camera,
    make_plate,
    surface,
    to_jpeg,
    to_uint8,
)

SEEDS = range(200)


@pytest.fixture(scope="module")
def plates() -> list[Plate]:
    return [make_plate(seed) for seed in SEEDS]


def bare(seed: int, width: int = 320, height: int = 240) -> np.ndarray:
    """The plate of this seed before it was damaged, as signed levels."""
    rng = np.random.default_rng(seed).spawn(2)[0]
    return to_uint8(surface(rng, width, height)).astype(np.int16)


def test_a_seed_always_gives_the_same_plate() -> None:
    first, second = make_plate(7), make_plate(7)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(first.class_ids, second.class_ids)


def test_other_seeds_give_other_plates() -> None:
    assert not np.array_equal(make_plate(7).image, make_plate(8).image)


def test_shapes_and_types(plates: list[Plate]) -> None:
    for plate in plates:
        assert plate.image.shape == (240, 320, 3)
        assert plate.image.dtype == np.uint8
        assert plate.boxes.shape == (len(plate.class_ids), 4)
        assert plate.boxes.dtype == np.float32
        assert plate.class_ids.dtype == np.int64
        assert set(plate.class_ids.tolist()) <= set(range(len(CLASS_NAMES)))


def test_about_a_fifth_is_clean_and_none_has_more_than_four_defects(plates: list[Plate]) -> None:
    counts = np.array([len(plate.class_ids) for plate in plates])
    assert 0.1 <= (counts == 0).mean() <= 0.3
    assert counts.max() == 4


def test_every_class_is_common(plates: list[Plate]) -> None:
    seen = np.bincount(np.concatenate([plate.class_ids for plate in plates]))
    assert (seen >= 0.25 * seen.sum()).all()


@pytest.mark.parametrize(("width", "height"), [(320, 240), (640, 480), (200, 300), (120, 120)])
def test_boxes_lie_inside_the_image_and_have_an_area(width: int, height: int) -> None:
    for seed in range(60):
        plate = make_plate(seed, width=width, height=height)
        assert plate.image.shape == (height, width, 3)
        assert (plate.boxes[:, :2] >= 0).all()
        assert (plate.boxes[:, 2:] <= (width, height)).all()
        assert (plate.boxes[:, 2:] - plate.boxes[:, :2] >= 1).all()


def test_boxes_do_not_touch(plates: list[Plate]) -> None:
    for plate in plates:
        for i, a in enumerate(plate.boxes):
            for b in plate.boxes[i + 1 :]:
                apart = np.maximum(a[:2], b[:2]) - np.minimum(a[2:], b[2:])
                assert apart.max() >= 4


def test_nothing_changes_outside_the_boxes() -> None:
    for seed in range(40):
        plate = make_plate(seed)
        untouched = np.ones(plate.image.shape[:2], dtype=bool)
        for left, top, right, bottom in plate.boxes.astype(int):
            untouched[top:bottom, left:right] = False
        assert np.array_equal(plate.image[untouched], bare(seed)[untouched])


def test_boxes_are_tight() -> None:
    for seed in range(40):
        plate = make_plate(seed)
        change = np.abs(plate.image - bare(seed)).max(axis=2)
        for left, top, right, bottom in plate.boxes.astype(int):
            inside = change[top:bottom, left:right]
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                # VISIBLE of the darkest metal, less one level of rounding.
                assert edge.max() >= VISIBLE * 60 - 1


@pytest.mark.parametrize("class_id", range(len(CLASS_NAMES)))
def test_a_defect_stands_out(class_id: int) -> None:
    for seed in range(50):
        patch = PAINTERS[class_id](np.random.default_rng(seed), 1.0)
        assert np.abs(patch - 1).max() >= 0.1
        assert patch.min() > 0


def test_a_camera_repeats_itself_only_when_started_again() -> None:
    first, again = list(islice(camera(3), 3)), list(islice(camera(3), 3))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].image, first[1].image)
    other = next(camera(4))
    assert not any(np.array_equal(other.image, plate.image) for plate in first)


def test_a_camera_shows_no_training_plate() -> None:
    """Training takes seeds below FRAMES_PER_CAMERA; the first camera starts at it."""
    assert np.array_equal(next(camera(0)).image, make_plate(FRAMES_PER_CAMERA).image)


def test_a_camera_has_the_size_asked_for() -> None:
    assert next(camera(0, width=200, height=160)).image.shape == (160, 200, 3)


def test_jpeg_keeps_size_and_roughly_the_levels() -> None:
    plate = make_plate(1)
    decoded = Image.open(io.BytesIO(to_jpeg(plate.image)))
    assert decoded.format == "JPEG"
    error = np.abs(np.asarray(decoded).astype(int) - plate.image.astype(int))
    assert error.shape == plate.image.shape
    assert error.mean() < 4
    assert len(to_jpeg(plate.image, quality=50)) < len(to_jpeg(plate.image))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        make_plate(-1)
    with pytest.raises(ValueError, match="120 pixels, got 320 x 119"):
        make_plate(0, height=119)
    with pytest.raises(ValueError, match="120 pixels, got 64 x 240"):
        next(camera(0, width=64))
