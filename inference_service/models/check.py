"""Trial of a model before it is served: load it, run it, and describe it or its errors."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_service.models.engine import Model
from inference_service.models.loader import RepositoryError, Runtime, load_files
from inference_service.models.model_spec import ModelSpecError
from vision import Letterbox, ModelError, OnnxClassifier, OnnxYolo
from vision.trial import trial_images

_CANDIDATES = 100  # boxes of an image that are looked at, best first
_MASKS = 10
# Ultralytics' threshold for validation. Below it, half precision may overflow in boxes of a good
# model that nobody gets to see.
_CONFIDENCE = 0.001
_HINTS = {
    "MODEL_FILE_MISSING": "Give an .onnx file, or a folder with a model.onnx.",
    "MODEL_FILE_INVALID": "",  # the message says what the file is, and so what to do
    "MODEL_METADATA_INVALID": "Add it to model.yaml, such as `labels: [scratch, pit, stain]`.",
    "MODEL_UNSUPPORTED": "Is `task` in model.yaml right? Detectors are YOLO exports, classifiers"
    " output one score for each label.",
    "MODEL_PROVIDER_UNAVAILABLE": "Install the onnxruntime package that includes it, or choose"
    " another with --providers.",
    "MODEL_RUN_FAILED": "The network loads but does not run: export it again, with an input of"
    " [batch, 3, height, width].",
    "MODEL_OUTPUT_INVALID": "Is `output` in model.yaml right? The weights may also be corrupt.",
}


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The properties of a model, found by loading and running it."""

    task: str
    """`detect`, `segment`, `pose`, `obb` or `classify`."""
    labels: tuple[str, ...]
    """Labels by class id."""
    input_width: int
    """Width in pixels."""
    input_height: int
    """Height in pixels."""
    batch: int | None
    """Rows of every run; None if it accepts any number."""
    output: str
    """The layout of a detector's output, or the kind of a classifier's scores."""
    temperature: float | None
    """Temperature of a classifier."""
    provider: str
    keypoint_names: tuple[str, ...] | None
    """Names of a pose model's keypoints in their order."""
    run_ms: float
    """Duration of a run of one image, median of those of the trial, ms."""

    def as_dict(self) -> dict[str, object]:
        """Return the properties for JSON."""
        return asdict(self)


def files(path: Path) -> tuple[Path, Path]:
    """Return the paths of a model's network and of its `model.yaml`, which may not exist.

    Args:
        path: a folder with a `model.onnx`, or an `.onnx` file of any name.
    """
    onnx = path / "model.onnx" if path.is_dir() else path
    return onnx, onnx.with_name("model.yaml")


def check_files(onnx: Path, yaml: Path, runtime: Runtime) -> ModelDescription:
    """Load a model from its files, run it, and return its properties.

    Args:
        onnx: the network.
        yaml: its `model.yaml`; may be missing.
        runtime: how it is run.

    Raises:
        RepositoryError: it is unusable; the message includes advice.
    """
    try:
        return describe(load_files(onnx.stem, "", onnx, yaml, runtime))
    except ModelSpecError as error:
        raise RepositoryError(str(error)) from error
    except ModelError as error:
        problem = error.message if str(onnx) in error.message else f"{onnx}: {error.message}"
        raise RepositoryError(f"{problem.rstrip('.')}. {_HINTS[error.reason]}".rstrip()) from error


def describe(model: Model) -> ModelDescription:
    """Run a loaded model on the images of a trial, and return its properties.

    Raises:
        ModelError: it fails, or its output is invalid for one of the images.
    """
    network, classifies = model.network, isinstance(model.network, OnnxClassifier)
    height, width = network.input_size
    seconds = _try_out(model)
    return ModelDescription(
        task=model.spec.task,
        labels=tuple(network.names[class_id] for class_id in sorted(network.names)),
        input_width=width,
        input_height=height,
        batch=network.batch_size,
        output=(network.scores if isinstance(network, OnnxClassifier) else network.layout).value,
        temperature=model.spec.temperature if classifies else None,
        provider=network.provider,
        keypoint_names=getattr(network, "keypoint_names", ()) or None,
        run_ms=round(seconds * 1000, 3),
    )


def _try_out(model: Model) -> float:
    """Run a model on every image of a trial, and return the median duration of a run, s.

    Raises:
        ModelError: a run fails, or an output is invalid.
    """
    network, times = model.network, []
    boxes: list[NDArray[np.float32]] = []
    for image in trial_images(*network.input_size):
        batch, _ = network.prepare(image)
        started = time.perf_counter()
        outputs = [output[0] for output in network.session.run(batch)]
        times.append(time.perf_counter() - started)
        if isinstance(network, OnnxClassifier):
            network.decode(outputs[0], temperature=model.spec.temperature, top_k=model.spec.top_k)
        else:
            boxes.append(_all_boxes(network, outputs))
            _make_masks(model, network, outputs)
    if boxes and not isinstance(network, OnnxClassifier):
        _check_boxes(np.concatenate(boxes), *network.input_size)
    return statistics.median(times)


def _all_boxes(network: OnnxYolo, outputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return the best boxes of an output in input pixels, also those with low scores.

    `decode` clips boxes to the image and leaves out those outside. It is given an image that
    extends beyond the input by the input's size on each side.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``.
    """
    height, width = network.input_size
    around = Letterbox(1.0, 1.0, -width, -height, 3 * width, 3 * height)
    found = network.decode_outputs(
        outputs, around, confidence=_CONFIDENCE, iou=1.0, max_detections=_CANDIDATES
    )
    return found.xyxy - np.array([width, height] * 2, dtype=np.float32)


def _make_masks(model: Model, network: OnnxYolo, outputs: Sequence[NDArray[Any]]) -> None:
    """Make some masks of an output, if the model has masks.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``.
    """
    height, width = network.input_size
    network.decode_outputs(
        outputs,
        Letterbox(1.0, 1.0, 0, 0, width, height),
        confidence=_CONFIDENCE,
        max_detections=_MASKS,
        mask_format=model.spec.thresholds.mask_format,
    )


def _check_boxes(xyxy: NDArray[np.float32], height: int, width: int) -> None:
    """Check that boxes ``[N, 4]`` in input pixels, if there are any, are not all nonsense.

    Raises:
        ModelError: ``MODEL_OUTPUT_INVALID``: every box lies outside the input, or is smaller than a
            pixel.
    """
    if not len(xyxy):
        return  # such as an export with NMS inside, which leaves out low scores
    sides = xyxy[:, 2:] - xyxy[:, :2]
    inside = ((xyxy[:, :2] < (width, height)) & (xyxy[:, 2:] > 0)).all(axis=1)
    if not inside.any():
        where = f"outside the input of {width} x {height} pixels, such as {_shown(xyxy[0])}"
    elif sides.max() < 1:
        where = f"smaller than a pixel, such as {_shown(xyxy[0])}: are they fractions of the input?"
    else:
        return
    raise ModelError(
        "MODEL_OUTPUT_INVALID",
        f"the model's output has {len(xyxy)} boxes for images of noise, and all are {where}",
    )


def _shown(box: NDArray[np.float32]) -> list[float]:
    return [round(float(side), 3) for side in box]
