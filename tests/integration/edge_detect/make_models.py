"""Makes models of ultralytics' architectures with random weights that see something.

A program of its own, because an export sets process-wide switches:

    python make_models.py FOLDER PICTURE...

writes `det`, `seg`, `pose`, `obb` and `cls`, each as `.pt` and `.onnx`. Nothing is downloaded. Run
it in a folder of its own.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO

from vision import decode_image, letterbox_image

SIZE = 128


def main(folder: Path, pictures: list[str]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several that wait for each other crawl on a busy machine
    _export(_classifier(pictures), folder / "cls")
    for task in ("det", "seg", "pose", "obb"):
        _export(_detector(task, pictures), folder / task)


@torch.no_grad()
def _detector(task: str, pictures: list[str]) -> Any:
    """Return a model whose objects differ in place, size, score, mask, points and angle."""
    model = YOLO("yolov8n.yaml" if task == "det" else f"yolov8n-{task}.yaml")
    _look(model, pictures)
    head = model.model.model[-1]
    for sides, scores in zip(head.cv2, head.cv3, strict=True):
        sides[-1].bias.view(4, 16)[:] = -0.6 * torch.arange(16)  # small boxes
        scores[-1].weight *= 0.2
        scores[-1].bias[:] = -0.5 if task == "pose" else -2.5  # which has one class
    for branch in getattr(head, "cv4", ()):
        branch[-1].weight *= 4 if task == "seg" else 0.2
    model.ckpt = {"train_args": {"imgsz": SIZE, "task": model.task}}  # as if it were trained so
    return model


def _look(model: Any, pictures: list[str]) -> torch.Tensor:
    """Give a model the pictures' statistics: fresh weights see the same everywhere."""
    rows = [letterbox_image(decode_image(Path(p).read_bytes()), (SIZE, SIZE))[0] for p in pictures]
    batch = torch.from_numpy(np.concatenate(rows))
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    model.model.train()(batch)
    model.model.eval()
    return batch


@torch.no_grad()
def _classifier(pictures: list[str]) -> Any:
    model = YOLO("yolov8n-cls.yaml")
    batch = _look(model, pictures)
    model.model.model[-1].linear.weight *= 2 / model.model(batch)[1].std()
    model.ckpt = {"train_args": {"imgsz": SIZE, "task": "classify"}}  # as if it were trained so
    return model


def _export(model: Any, path: Path) -> None:
    """Exports what was saved: a checkpoint's weights are of half precision."""
    model.save(path.with_suffix(".pt"))
    made = YOLO(path.with_suffix(".pt")).export(
        format="onnx", imgsz=SIZE, simplify=False, verbose=False
    )
    Path(made).replace(path.with_suffix(".onnx"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
