"""Makes models of ultralytics' architectures with random weights that see something.

A program of its own, because an export sets process-wide switches:

    python make_models.py FOLDER PICTURE...

writes `cls`, `seg` as `.pt` and `.onnx`, and `pose`, `obb` as `.pt`. Nothing is downloaded. Run it
in a folder of its own.
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
    _export(YOLO("yolov8n-seg.yaml"), folder / "seg")
    for task in ("pose", "obb"):
        YOLO(f"yolov8n-{task}.yaml").save(folder / f"{task}.pt")


@torch.no_grad()
def _classifier(pictures: list[str]) -> Any:
    """Fresh weights see the same everywhere: they get a picture's statistics, and are scaled."""
    model = YOLO("yolov8n-cls.yaml")
    rows = [letterbox_image(decode_image(Path(p).read_bytes()), (SIZE, SIZE))[0] for p in pictures]
    batch = torch.from_numpy(np.concatenate(rows))
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    model.model.train()(batch)
    model.model.eval()
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
