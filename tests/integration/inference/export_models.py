"""Makes ONNX files of ultralytics' and torchvision's architectures, and says what these see.

A program of its own, because importing both takes seconds and sets process-wide switches:

    python export_models.py FOLDER PICTURE...

writes the files of `DETECTORS`, `CLASSIFIER` and `TORCHVISION` into the folder, and prints a JSON
object as its last line: for each model and picture the boxes, confidences and classes, or the
probabilities. The weights are random (nothing is downloaded) and scaled until they see something.
Run it in a folder of its own.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models import (
    EfficientNet_B4_Weights,
    ResNet50_Weights,
    efficientnet_b4,
    resnet50,
)
from ultralytics import YOLO

from vision import decode_image, letterbox_image

SIZE = 256
DETECTORS: dict[str, dict[str, dict[str, bool]]] = {
    "yolov8n": {
        "yolov8n": {"dynamic": True},
        "yolov8n_nms": {"nms": True},  # non-maximum suppression inside
    },
    "yolo11n": {"yolo11n": {}},
    # In ultralytics' words nms=False is end to end.
    "yolo26n": {"yolo26n": {"nms": False}, "yolo26n_many": {}},
    "yolov10n": {"yolov10n": {"nms": False}},
}
CLASSIFIER = "yolov8n-cls"
WANTED = 60  # anchors above the threshold in each picture
TORCHVISION = {
    "resnet50": (resnet50, ResNet50_Weights.IMAGENET1K_V2, "fc"),
    "efficientnet_b4": (efficientnet_b4, EfficientNet_B4_Weights.IMAGENET1K_V1, "classifier.1"),
}


def export_all(folder: Path, pictures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Export each model and look at each picture with it."""
    batch = _batch(pictures)
    results = {}
    for architecture, exports in DETECTORS.items():
        model = _fresh(architecture)
        confidences = _spread(model.model, batch)
        for name, options in exports.items():
            path = _export(model, folder / f"{name}.onnx", **options)
            of_head = confidences["one2one" if options.get("nms") is False else "one2many"]
            results[name] = _detect(path, dict(zip(pictures, of_head, strict=True)))
    model = _fresh(CLASSIFIER)
    _spread_classes(model.model, batch)
    results[CLASSIFIER] = _classify(_export(model, folder / f"{CLASSIFIER}.onnx"), pictures)
    for name in TORCHVISION:
        results[name] = _torchvision(name, folder / f"{name}.onnx", pictures)
    return results


def _batch(pictures: Sequence[str]) -> Any:
    pixels = [decode_image(Path(picture).read_bytes()) for picture in pictures]
    return torch.from_numpy(
        np.concatenate([letterbox_image(each, (SIZE, SIZE))[0] for each in pixels])
    )


def _fresh(architecture: str) -> Any:
    torch.manual_seed(0)
    return YOLO(f"{architecture}.yaml")


def _learn_statistics(network: Any, batch: Any) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    network.train()(batch)
    network.eval()


@torch.no_grad()
def _spread(network: Any, batch: Any) -> dict[str, list[float]]:
    """Give random weights the statistics of trained ones: dozens of objects, of many classes.

    Fresh last layers see the same everywhere, so they are scaled.

    Returns:
        For each of the network's heads, and each picture, the confidence that `WANTED` anchors
        exceed.
    """
    _learn_statistics(network, batch)
    head = network.model[-1]
    heads = {"one2many": head.one2many}
    if hasattr(head, "one2one_cv2"):
        heads["one2one"] = head.one2one
    for layers in heads.values():
        for box, score in zip(layers["box_head"], layers["cls_head"], strict=True):
            score[-1].bias.zero_()
            if head.reg_max > 1:  # else the distances themselves, some below 0: boxes inside out
                box[-1].weight *= 4
    raw = network(batch)[1]
    raw = raw if "one2one" in raw else {"one2many": raw}
    return {name: _scale(heads[name]["cls_head"], raw[name]["scores"]) for name in heads}


def _scale(layers: Any, scores: Any) -> list[float]:
    factor = 0.7 / scores.std()
    surest = factor * scores.amax(dim=1).sort(descending=True).values[:, WANTED]
    for layer in layers:
        layer[-1].weight *= factor
        layer[-1].bias -= surest.mean()
    results: list[float] = (surest - surest.mean()).sigmoid().tolist()
    return results


@torch.no_grad()
def _spread_classes(network: Any, batch: Any) -> None:
    _learn_statistics(network, batch)
    network.model[-1].linear.weight *= 2 / network(batch)[1].std()


def _export(model: Any, path: Path, **options: bool) -> Path:
    exported = model.export(format="onnx", imgsz=SIZE, simplify=False, verbose=False, **options)
    return Path(exported).rename(path)


def _detect(path: Path, confidences: dict[str, float]) -> dict[str, Any]:
    model = YOLO(path, task="detect")
    results = {}
    for picture, confidence in confidences.items():
        (result,) = model.predict(picture, imgsz=SIZE, conf=confidence, rect=False, verbose=False)
        boxes = result.boxes
        results[Path(picture).name] = {
            "threshold": confidence,
            "xyxy": boxes.xyxy.tolist(),
            "confidence": boxes.conf.tolist(),
            "class_id": boxes.cls.int().tolist(),
        }
    return results


def _classify(path: Path, pictures: Sequence[str]) -> dict[str, Any]:
    model = YOLO(path, task="classify")
    return {
        Path(picture).name: model.predict(picture, imgsz=SIZE, verbose=False)[0].probs.data.tolist()
        for picture in pictures
    }


@torch.no_grad()
def _torchvision(name: str, path: Path, pictures: Sequence[str]) -> dict[str, Any]:
    """Use the transform that torchvision has for the weights, not the weights."""
    make, weights, last = TORCHVISION[name]
    torch.manual_seed(0)
    model, transform = make(weights=None), weights.transforms()
    batch = torch.stack([transform(Image.open(picture)) for picture in pictures])
    _learn_statistics(model, batch)
    model.get_submodule(last).weight *= 2 / model(batch).std()
    torch.onnx.export(
        model,
        (batch[:1],),
        path,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        dynamo=False,
    )
    probabilities = model(batch).softmax(dim=1)
    return {
        Path(picture).name: row.tolist()
        for picture, row in zip(pictures, probabilities, strict=True)
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # several that wait for each other crawl on a busy machine
    everything = export_all(Path(sys.argv[1]), sys.argv[2:])
    print(json.dumps(everything))  # noqa: T201 - the answer
