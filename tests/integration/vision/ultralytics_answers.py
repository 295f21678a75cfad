"""Exports models of ultralytics' architectures, and writes down what ultralytics sees with them.

A program of its own, because an export sets process-wide switches:

    python ultralytics_answers.py FOLDER PICTURE EXPORT...

writes for each named entry of `EXPORTS` a file `NAME.onnx` and a file `NAME.npz` with ultralytics'
own answer for the picture. The weights are random (nothing is downloaded) and scaled until they
see something. Run it in a folder of its own.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ultralytics import RTDETR, YOLO
from ultralytics.utils import ops

from tests.integration.vision.export_list import CONFIDENCE, EXPORTS, SIZE, Export
from vision import decode_image, letterbox_image

WANTED = 50  # anchors above the threshold


def write(folder: Path, picture: str, name: str) -> None:
    """Export a model and write its file, and what ultralytics sees with that file."""
    export = EXPORTS[name]
    model = _fresh(export)
    size = SIZE[1] if "cls" in export.model or "rtdetr" in export.model else SIZE
    _open_eyes(model.model, _views(picture, (size, size) if isinstance(size, int) else size))
    made = model.export(format="onnx", imgsz=size, simplify=False, verbose=False, **export.options)
    path = Path(made).rename(folder / f"{name}.onnx")
    answer = _answer(path, model.task, picture, size)
    np.savez_compressed(folder / f"{name}.npz", **answer)


def _fresh(export: Export) -> Any:
    torch.manual_seed(0)
    kind = RTDETR if "rtdetr" in export.model else YOLO
    model = kind(f"{export.model}.yaml")
    if export.changes:
        changed = Path(f"{export.model}.yaml")
        content = {k: v for k, v in model.model.yaml.items() if k not in ("yaml_file", "ch")}
        changed.write_text(yaml.safe_dump({**content, **export.changes}))
        model = kind(str(changed))
    return model


def _views(picture: str, size: tuple[int, int]) -> Any:
    """Return a batch of the picture as the model sees it, and of variants of it."""
    pixels = decode_image(Path(picture).read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    variants = (pixels, pixels[:, ::-1], pixels[::-1], pixels // 2 + noise // 2)
    rows = [letterbox_image(np.ascontiguousarray(each), size)[0] for each in variants]
    return torch.from_numpy(np.concatenate(rows))


@torch.no_grad()
def _open_eyes(network: Any, batch: Any) -> None:
    """Give random weights the statistics of trained ones: dozens of objects, of many classes."""
    head = network.model[-1]
    if not hasattr(head, "dec_score_head"):  # whose training needs targets
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean over all batches
        network.train()(batch)
        network.eval()
    if hasattr(head, "linear"):
        head.linear.weight *= 2 / network(batch)[1].std().clamp(min=1e-3)
    elif hasattr(head, "dec_score_head"):
        for layer in (head.enc_score_head, *head.dec_score_head):
            layer.weight *= 4
            layer.bias.zero_()
    else:
        _scale_detector(network, head, batch)


def _scale_detector(network: Any, head: Any, batch: Any) -> None:
    heads = {"one2many": head.one2many}
    if hasattr(head, "one2one_cv2"):
        heads["one2one"] = head.one2one
    for layers in heads.values():
        for box, score in zip(layers["box_head"], layers["cls_head"], strict=True):
            score[-1].bias.zero_()
            if head.reg_max > 1:  # else the distances themselves, some below 0: boxes inside out
                box[-1].weight *= 4
            else:
                box[-1].bias += 1
        for angle in layers.get("angle_head", ()):
            angle[-1].weight *= 10
    raw = network(batch)[1]
    raw = raw if "one2one" in raw else {"one2many": raw}
    for name, layers in heads.items():
        scores = raw[name]["scores"]
        factor = 0.7 / scores.std()
        surest = factor * scores[:1].amax(dim=1).sort(descending=True).values[:, WANTED]
        for layer in layers["cls_head"]:
            layer[-1].weight *= factor
            layer[-1].bias -= surest.mean()


def _answer(path: Path, task: str, picture: str, size: int | tuple[int, int]) -> dict[str, Any]:
    model = RTDETR(path) if "rtdetr" in path.name else YOLO(path, task=task)
    (result,) = model.predict(
        picture, imgsz=size, conf=CONFIDENCE, rect=False, retina_masks=True, verbose=False
    )
    if task == "classify":
        return {"probabilities": result.probs.data.numpy()}
    boxes = result.obb if task == "obb" else result.boxes
    answer = {"xyxy": boxes.xyxy, "confidence": boxes.conf, "class_id": boxes.cls}
    if task == "obb":
        answer["rotated"] = ops.regularize_rboxes(boxes.xywhr)
    if task == "pose":
        answer["keypoints"] = result.keypoints.data
    if task == "segment":
        answer["masks"] = result.masks.data.bool()
    return {name: value.numpy() for name, value in answer.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # several that wait for each other crawl on a busy machine
    for wanted in sys.argv[3:]:
        write(Path(sys.argv[1]), sys.argv[2], wanted)
