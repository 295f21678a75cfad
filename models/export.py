"""Export of a trained detector to ONNX with the metadata of YOLO exporters, and its model.yaml."""

import warnings
from pathlib import Path

import onnx
import torch
import yaml

from models.network import INPUT_HEIGHT, INPUT_WIDTH, STRIDE, PlateDetector
from models.plates import CLASS_NAMES

NAME = "plates"
VERSION = "1"
REPOSITORY = Path(__file__).parent / "repository"

CONFIDENCE = 0.25
IOU = 0.45
MAX_DETECTIONS = 50

_DESCRIPTION = "Sightline demo model: scratches, pits and stains on synthetic metal plates"
_LICENSE = "Apache-2.0"
# Fixed, so that training again gives the same file.
_DATE = "2026-11-22T00:00:00+00:00"
_OPSET = 17
_IR_VERSION = 8


def write_model(model: PlateDetector, repository: Path) -> Path:
    """Write <repository>/plates/1/model.onnx and model.yaml; return the path of the former."""
    folder = repository / NAME / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    _export(model, path)
    exported = onnx.load(path)
    exported.ir_version = _IR_VERSION
    exported.doc_string = _DESCRIPTION
    _state_output_shape(exported.graph.output[0], model)
    onnx.helper.set_model_props(exported, metadata())
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
    text = yaml.safe_dump(description(), sort_keys=False, allow_unicode=True)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return path


def metadata() -> dict[str, str]:
    """Return the properties of the ONNX file, under the keys that ultralytics' tools read."""
    return {
        "description": _DESCRIPTION,
        "author": "Sightline",
        "date": _DATE,
        "version": VERSION,
        "license": _LICENSE,
        "docs": "models/README.md",
        "stride": str(STRIDE),
        "task": "detect",
        "batch": "1",
        "imgsz": str([INPUT_HEIGHT, INPUT_WIDTH]),
        "names": str(dict(enumerate(CLASS_NAMES))),
        # dynamic is about height and width; any batch size is accepted all the same.
        "args": str({"batch": 1, "dynamic": False, "nms": False}),
        "channels": "3",
        "end2end": "False",
    }


def description() -> dict[str, object]:
    """Return the contents of model.yaml."""
    return {
        "task": "detect",
        "description": _DESCRIPTION,
        "license": _LICENSE,
        "labels": list(CLASS_NAMES),
        "input": {"width": INPUT_WIDTH, "height": INPUT_HEIGHT},
        "thresholds": {"confidence": CONFIDENCE, "iou": IOU, "max_detections": MAX_DETECTIONS},
        "defect_labels": list(CLASS_NAMES),
    }


def _state_output_shape(output: onnx.ValueInfoProto, model: PlateDetector) -> None:
    """Set the sizes that tracing left open, and remove the name of the batch dimension.

    ultralytics takes a name there to mean any height and width, and then feeds 640 x 640.
    """
    batch, rows, columns = output.type.tensor_type.shape.dim
    batch.Clear()
    rows.dim_value = model.outputs
    columns.dim_value = model.centres.shape[1]


def _export(model: PlateDetector, path: Path) -> None:
    example = torch.zeros(1, 3, INPUT_HEIGHT, INPUT_WIDTH)
    batch_axis = {0: "batch"}
    with warnings.catch_warnings():
        # Deprecated, but it needs no further package, and this graph has no control flow.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.to(memory_format=torch.contiguous_format),
            (example,),
            path,
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes={"images": batch_axis, "output0": batch_axis},
            opset_version=_OPSET,
            dynamo=False,
        )
