"""Labelled images for a calibration: reading and splitting a set, and a model's logits."""

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference_service.models.calibration import Labels, Logits
from vision import ImageError, ImageLimits, OnnxClassifier, decode_image

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_MAX_SHOWN = 5


class LabelledError(Exception):
    """An unusable set of labelled images. The message is one sentence with a file or a label."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image and its true class."""

    path: Path
    class_id: int


def find(source: Path, names: Mapping[int, str]) -> list[LabelledImage]:
    """Read a labelled set.

    Args:
        source: a folder with a subfolder per label, which contains images at any depth; or a CSV
            file with the path of an image (relative to the file) and a label in each line; a first
            line `file,label` is skipped.
        names: labels of the model, by class id.

    Raises:
        LabelledError: there are no images, or the model does not have a label.
    """
    try:
        pairs = list(_in_csv(source) if source.is_file() else _in_folders(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelledError(f"{source} cannot be read: {error}") from error
    ids = {label: class_id for class_id, label in names.items()}
    unknown = sorted({label for _, label in pairs} - ids.keys())
    if unknown:
        raise LabelledError(
            f"{source}: label {unknown[0]!r} is not a label of the model: {_some(ids)}"
        )
    if not pairs:
        raise LabelledError(f"{source} contains no images in folders named by labels")
    return [LabelledImage(path, ids[label]) for path, label in pairs]


def split(
    images: Sequence[LabelledImage], held_out: float, seed: int = 0
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split a set into images to fit and images to measure with; deterministic.

    Args:
        images: the set.
        held_out: fraction of the images of each label to measure with, in (0, 1).
        seed: seed of the random choice.

    Raises:
        LabelledError: one of the parts would be empty.
    """
    shuffled = sorted(images, key=lambda image: str(image.path))
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - not a secret
    fit: list[LabelledImage] = []
    test: list[LabelledImage] = []
    for class_id in sorted({image.class_id for image in shuffled}):
        of_class = [image for image in shuffled if image.class_id == class_id]
        cut = round(len(of_class) * held_out)
        test += of_class[:cut]
        fit += of_class[cut:]
    if not fit or not test:
        raise LabelledError(
            f"{len(images)} images are too few: both the fit and the measurement of the temperature"
            " need images of a label"
        )
    return fit, test


def outputs(
    network: OnnxClassifier, images: Iterable[LabelledImage], limits: ImageLimits
) -> tuple[Logits, Labels]:
    """Return a network's logits and the true classes of all images.

    Raises:
        LabelledError: an image is unusable.
        ModelError: the network fails, or its output is invalid.
    """
    rows, labels = [], []
    for image in images:
        try:
            pixels = decode_image(image.path.read_bytes(), limits)
        except ImageError as error:
            raise LabelledError(f"{image.path}: {error}") from error
        except OSError as error:
            raise LabelledError(f"{image.path} cannot be read: {error.strerror}") from error
        batch, _ = network.prepare(pixels)
        rows.append(network.logits(network.run(batch)[0]))
        labels.append(image.class_id)
    return np.array(rows), np.array(labels, dtype=np.int64)


def _in_folders(source: Path) -> Iterable[tuple[Path, str]]:
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
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
    more = ", ..." if len(known) > _MAX_SHOWN else ""
    return ", ".join(known[:_MAX_SHOWN]) + more
