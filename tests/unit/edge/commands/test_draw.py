"""Copies with boxes on them: upright, in the class's colour, and never the original."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.cloud.types import ClassScore, ImageAnswer
from edge.commands.draw import Copies, colour_of
from edge.records import Box, Detection, Keypoint, Mask, RotatedBox
from vision import encode_rle

GREY = (90, 90, 90)
ORIENTATION = 0x0112


def photograph(path: Path, size: tuple[int, int] = (400, 300), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", size, GREY).save(path, exif=exif)
    return path


def answer(*found: Detection, size: tuple[int, int] = (400, 300)) -> ImageAnswer:
    return ImageAnswer("p", *size, found)


def coloured(path: Path, class_id: int) -> tuple[int, int, int, int] | None:
    """Return the box around the pixels of a class's colour; JPEG changes colours a little."""
    array = np.asarray(Image.open(path).convert("RGB")).astype(int)
    close = np.abs(array - colour_of(class_id)).max(axis=2) < 25
    if not close.any():
        return None
    rows, columns = np.where(close)
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_box_is_where_it_was_found(tmp_path: Path, suffix: str) -> None:
    path = photograph(tmp_path / f"part.{suffix}")
    copies = Copies(tmp_path / "out", [path])
    saved = copies.save(path, answer(Detection(0, "scratch", 0.875, Box(100, 120, 300, 260))))
    assert saved == tmp_path / "out" / f"part.{suffix}"
    around = coloured(saved, 0)
    assert around is not None
    left, top, right, bottom = around
    assert abs(left - 100) <= 2
    assert abs(right - 300) <= 2
    assert abs(bottom - 260) <= 2
    assert 95 <= top <= 120  # the label stands on the box


def test_the_original_stays_as_it_is_wherever_copies_go(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.jpg")
    link = tmp_path / "part-2.jpg"
    os.link(path, link)
    before = path.read_bytes()
    saved = Copies(tmp_path, [path]).save(path, answer(Detection(0, "", 0.5, Box(1, 1, 9, 9))))
    assert saved.name == "part-3.jpg"  # part-2.jpg is the original by another name
    assert path.read_bytes() == link.read_bytes() == before
    assert saved.read_bytes() != before


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / folder / "part.png") for folder in ("a", "b")]
    copies = Copies(tmp_path / "out", paths)
    saved = [copies.save(path, answer()) for path in paths]
    assert [path.name for path in saved] == ["part.png", "part-2.png"]
    again = Copies(tmp_path / "out", paths).save(paths[0], answer())
    assert again.name == "part.png"  # the copy of an earlier run is replaced


def test_a_rotated_photograph_is_drawn_upright(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.jpg", size=(400, 300), orientation=6)
    found = answer(Detection(0, "", 0.5, Box(50, 200, 250, 380)), size=(300, 400))
    saved = Copies(tmp_path / "out", [path]).save(path, found)
    with Image.open(saved) as copy:
        assert copy.size == (300, 400)
        assert copy.getexif().get(ORIENTATION, 1) == 1
    around = coloured(saved, 0)
    assert around is not None
    assert abs(around[3] - 380) <= 2


def test_a_class_has_one_colour_and_its_neighbours_others(tmp_path: Path) -> None:
    colours = [colour_of(class_id) for class_id in range(12)]
    assert len(set(colours)) == len(colours)
    assert colours == [colour_of(class_id) for class_id in range(12)]
    steps = [np.abs(np.subtract(a, b)).max() for a, b in itertools.pairwise(colours)]
    assert min(steps) > 60


def test_classes_stand_one_below_the_other(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png")
    scores = (ClassScore(0, "scratch", 0.75), ClassScore(1, "", 0.25))
    saved = Copies(tmp_path / "out", [path]).save(path, ImageAnswer("p", 400, 300, classes=scores))
    first, second = coloured(saved, 0), coloured(saved, 1)
    assert first is not None
    assert second is not None
    assert first[1] == 0
    assert second[1] >= first[3]


def test_a_label_stays_inside_the_image(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png", size=(60, 40))
    found = Detection(3, "a long name of a class", 0.5, Box(50, 0, 60, 10))
    saved = Copies(tmp_path / "out", [path]).save(path, answer(found, size=(60, 40)))
    assert Image.open(saved).size == (60, 40)


def test_a_format_that_pillow_should_not_write_becomes_a_png(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png").rename(tmp_path / "part.upload")
    saved = Copies(tmp_path / "out", [path]).save(path, answer())
    assert saved.name == "part.png"


def at(path: Path, x: int, y: int, class_id: int) -> str:
    """Return line, shade or image: what the pixel belongs to."""
    colour = np.asarray(Image.open(path).convert("RGB")).astype(int)[y, x]
    if np.abs(colour - colour_of(class_id)).max() < 25:
        return "line"
    return "image" if np.abs(colour - GREY).max() < 5 else "shade"


def test_a_rotated_box_takes_the_place_of_its_hull(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png")
    turned = RotatedBox(200, 150, 120, 60, angle=math.pi / 6)
    found = Detection(0, "part", 0.5, Box(133, 94, 267, 206), rotated_box=turned)
    saved = Copies(tmp_path / "out", [path]).save(path, answer(found))
    middle_of_side = 200 - 30 * math.sin(math.pi / 6), 150 + 30 * math.cos(math.pi / 6)
    x, y = map(round, middle_of_side)
    assert at(saved, x, y, 0) == "line"
    assert at(saved, 133, 200, 0) == "image"  # a corner of the hull
    assert at(saved, 200, 150, 0) == "image"


@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_a_mask_is_a_shade(tmp_path: Path, form: str) -> None:
    path = photograph(tmp_path / "part.png")
    bitmap = np.zeros((300, 400), bool)
    bitmap[100:201, 50:151] = True
    encoded = encode_rle(bitmap, left=0, top=0, width=400, height=300)
    mask = {
        "polygon": Mask(polygons=[[(50, 100), (150, 100), (150, 200), (50, 200)]]),
        "rle": Mask(rle=encoded.counts, width=400, height=300),
    }[form]
    saved = Copies(tmp_path / "out", [path]).save(
        path, answer(Detection(0, "part", 0.5, Box(40, 90, 160, 210), mask=mask))
    )
    for x, y in ((50, 100), (100, 150), (150, 200)):
        assert at(saved, x, y, 0) == "shade"
    for x, y in ((48, 150), (152, 150), (100, 202), (300, 50)):
        assert at(saved, x, y, 0) == "image"
    assert at(saved, 40, 150, 0) == "line"


def test_visible_keypoints_are_dots(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png")
    points = (Keypoint(100, 100, 0.9), Keypoint(200, 100, 0.1), Keypoint(300, 100), Keypoint(-9, 0))
    found = Detection(0, "part", 0.5, Box(10, 30, 390, 290), keypoints=points)
    saved = Copies(tmp_path / "out", [path]).save(path, answer(found))
    assert [at(saved, x, 100, 0) for x in (100, 200, 300)] == ["line", "image", "line"]


def test_a_mask_of_another_size_does_not_end_the_run(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png")
    encoded = encode_rle(np.ones((9, 900), bool), left=0, top=0, width=900, height=9)
    mask = Mask(rle=encoded.counts, width=900, height=9)
    found = Detection(0, "part", 0.5, Box(10, 30, 390, 290), mask=mask)
    saved = Copies(tmp_path / "out", [path]).save(path, answer(found))
    assert at(saved, 399, 5, 0) == "shade"
