"""LabelledImage images for a calibration: where they are, what they show, and a model's logits."""

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference_service.models.calibration import Labels, Logits
from vision import ImageError, ImageLimits, OnnxClassifier, decode_image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_MOST_SHOWN = 5


class LabelledError(Exception):
    """Images that cannot be used. The message is one sentence, which names a file or a label."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image and what it shows."""

    path: Path
    class_id: int


def find(source: Path, names: Mapping[int, str]) -> list[LabelledImage]:
    """Return the images of a set.

    Args:
        source: a folder of folders that are called as the labels, with images in them at any
            depth; or a CSV file with an image (relative to the file) and a label in each line; a
            first line of `file,label` is passed over.
        names: labels of the model, by class id.

    Raises:
        LabelledError: there are none, or a label is none of the model's.
    """
    try:
        pairs = list(_in_csv(source) if source.is_file() else _in_folders(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelledError(f"{source} cannot be read: {error}") from error
    ids = {label: class_id for class_id, label in names.items()}
    unknown = sorted({label for _, label in pairs} - ids.keys())
    if unknown:
        raise LabelledError(f"{source}: label {unknown[0]!r} is none of the model's, {_some(ids)}")
    if not pairs:
        raise LabelledError(f"{source} holds no images in folders that are called as labels")
    return [LabelledImage(path, ids[label]) for path, label in pairs]


def split(
    found: Sequence[LabelledImage], held_out: float, seed: int = 0
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Return those to fit to and those to judge by, the same ones each time.

    Args:
        found: all.
        held_out: share of each label to judge by, in (0, 1).
        seed: of the choice.

    Raises:
        LabelledError: one of the parts would be empty.
    """
    shuffled = sorted(found, key=lambda each: str(each.path))
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - nobody guesses it to do harm
    fit: list[LabelledImage] = []
    judge: list[LabelledImage] = []
    for class_id in sorted({each.class_id for each in shuffled}):
        own = [each for each in shuffled if each.class_id == class_id]
        cut = round(len(own) * held_out)
        judge += own[:cut]
        fit += own[cut:]
    if not fit or not judge:
        raise LabelledError(
            f"{len(found)} images are too few: some of a label are needed to fit the temperature,"
            " and others to judge it by"
        )
    return fit, judge


def outputs(
    network: OnnxClassifier, images: Iterable[LabelledImage], limits: ImageLimits
) -> tuple[Logits, Labels]:
    """Return a network's logits and the true classes, image by image.

    Raises:
        LabelledError: an image cannot be used.
        ModelError: the network fails, or puts out nonsense.
    """
    rows, labels = [], []
    for each in images:
        try:
            pixels = decode_image(each.path.read_bytes(), limits)
        except ImageError as error:
            raise LabelledError(f"{each.path}: {error}") from error
        except OSError as error:
            raise LabelledError(f"{each.path} cannot be read: {error.strerror}") from error
        batch, _ = network.prepare(pixels)
        rows.append(network.logits(network.run(batch)[0]))
        labels.append(each.class_id)
    return np.array(rows), np.array(labels, dtype=np.int64)


def _in_folders(source: Path) -> Iterable[tuple[Path, str]]:
    for folder in sorted(each for each in source.iterdir() if each.is_dir()):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in _SUFFIXES:
                yield path, folder.name


def _in_csv(source: Path) -> Iterable[tuple[Path, str]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            if not line or (number == 1 and line == ["file", "label"]):
                continue
            if len(line) != 2:
                raise LabelledError(f"{source}: line {number}: must be file,label (got {line})")
            yield source.parent / line[0], line[1]


def _some(labels: Iterable[str]) -> str:
    known = list(labels)
    more = ", ..." if len(known) > _MOST_SHOWN else ""
    return ", ".join(known[:_MOST_SHOWN]) + more
