"""Copies with boxes on them: upright, in the class's colour, and never the original."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.cloud.types import ClassScore, ImageAnswer
from edge.commands.draw import Copies, colour_of
from edge.records import Box, Detection

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


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
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


def test_a_label_stays_inside_the_picture(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png", size=(60, 40))
    found = Detection(3, "a long name of a class", 0.5, Box(50, 0, 60, 10))
    saved = Copies(tmp_path / "out", [path]).save(path, answer(found, size=(60, 40)))
    assert Image.open(saved).size == (60, 40)


def test_a_format_that_pillow_should_not_write_becomes_a_png(tmp_path: Path) -> None:
    path = photograph(tmp_path / "part.png").rename(tmp_path / "part.upload")
    saved = Copies(tmp_path / "out", [path]).save(path, answer())
    assert saved.name == "part.png"
