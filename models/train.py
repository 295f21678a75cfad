"""Training of the demo model on synthetic plates, into the model repository.

``python -m models.train`` takes about ten minutes on two CPU cores and needs torch and onnx. The
seed is fixed: the same versions on the same machine give the same file.
"""

import argparse
import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.export import REPOSITORY, write_model
from models.loss import detection_loss
from models.network import INPUT_HEIGHT, INPUT_WIDTH, PlateDetector
from models.plates import CLASS_NAMES, FRAMES_PER_CAMERA, Plate, make_plate, to_jpeg
from vision import Letterbox, letterbox_image

logger = logging.getLogger(__name__)

SEED = 20261122
PLATES = 4000
EPOCHS = 9
BATCH = 16
PEAK_RATE = 4e-3
WEIGHT_DECAY = 0.02
SLOTS = 4
_REPORT_EVERY = 50


def main() -> None:
    """Train, and write model.onnx and model.yaml."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repository", type=Path, default=REPOSITORY)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_model(train(), arguments.parse_args().repository)


def train() -> PlateDetector:
    """Return a detector trained on PLATES plates, EPOCHS times each."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    images, truth = _training_set(np.random.default_rng(SEED))
    model = PlateDetector(len(CLASS_NAMES), INPUT_HEIGHT, INPUT_WIDTH)
    model = model.to(memory_format=torch.channels_last)
    steps = EPOCHS * (PLATES // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    losses: list[float] = []
    for step, (batch, boxes) in enumerate(itertools.islice(_batches(images, truth), steps), 1):
        loss = detection_loss(*model.raw(batch), model.centres, boxes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % _REPORT_EVERY == 0:
            recent = float(np.mean(losses[-_REPORT_EVERY:]))
            logger.info("step %d of %d, loss %.3f", step, steps, recent)
    return model.eval()


def _training_set(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return letterboxed plates, ``[PLATES, 3, height, width]``, and truth for detection_loss."""
    images = torch.empty((PLATES, 3, INPUT_HEIGHT, INPUT_WIDTH), dtype=torch.uint8)
    truth = torch.full((PLATES, SLOTS, 5), -1.0)
    seeds = rng.choice(FRAMES_PER_CAMERA, PLATES, replace=False)
    for row, seed in enumerate(seeds):
        plate = make_plate(int(seed))
        pixels, box = letterbox_image(_compressed(rng, plate), (INPUT_HEIGHT, INPUT_WIDTH))
        images[row] = torch.from_numpy(np.round(pixels[0] * 255).astype(np.uint8))
        count = len(plate.boxes)
        truth[row, :count, 0] = torch.from_numpy(plate.class_ids)
        truth[row, :count, 1:] = torch.from_numpy(_to_input(plate.boxes, box))
    return images, truth


def _to_input(boxes: NDArray[np.float32], box: Letterbox) -> NDArray[np.float32]:
    """Convert boxes [N, 4] from the image's pixels to pixels of the model's input."""
    gain = np.array([box.scale_x, box.scale_y] * 2, dtype=np.float32)
    return boxes * gain + np.array([box.pad_x, box.pad_y] * 2, dtype=np.float32)


def _compressed(rng: np.random.Generator, plate: Plate) -> NDArray[np.uint8]:
    """Return the image as a camera may send it: every other one through JPEG."""
    if rng.random() < 0.5:
        return plate.image
    jpeg = to_jpeg(plate.image, quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def _batches(images: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless shuffled batches, mirrored and relit at random: images in 0..1 and truth."""
    while True:
        for rows in torch.split(torch.randperm(len(images)), BATCH):
            batch = images[rows].float() / 255
            boxes = truth[rows]
            for axis in (2, 3):
                if torch.rand(()) < 0.5:
                    batch, boxes = batch.flip(axis), mirrored(boxes, axis)
            gain = torch.empty(len(rows), 1, 1, 1).uniform_(0.85, 1.15)
            yield (batch * gain).clamp(0, 1).to(memory_format=torch.channels_last), boxes


def mirrored(truth: Tensor, axis: int) -> Tensor:
    """Return truth for images flipped along this axis: 2 for rows, 3 for columns."""
    low, high, size = (2, 4, INPUT_HEIGHT) if axis == 2 else (1, 3, INPUT_WIDTH)
    turned = truth.clone()
    turned[:, :, low] = size - truth[:, :, high]
    turned[:, :, high] = size - truth[:, :, low]
    return turned


if __name__ == "__main__":
    main()
