"""Tries a model out before it serves: loads it, runs it, and says what it is or what is wrong."""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from inference_service.models.engine import Model
from inference_service.models.loader import RepositoryError, Runtime, load_files
from inference_service.models.model_spec import ModelSpecError
from vision import ModelError, OnnxClassifier

_RUNS = 5
_HINTS = {
    "MODEL_FILE_MISSING": "Give an .onnx file, or a folder that holds a model.onnx.",
    "MODEL_FILE_INVALID": "Export it again, and keep its external data, if any, beside it.",
    "MODEL_METADATA_INVALID": "Say it in model.yaml, such as `labels: [scratch, pit, stain]`.",
    "MODEL_UNSUPPORTED": "Is `task` in model.yaml right? Detectors are YOLO exports, classifiers"
    " put out one score for each label.",
    "MODEL_PROVIDER_UNAVAILABLE": "Install the onnxruntime package that has it, or choose another"
    " with --providers.",
    "MODEL_RUN_FAILED": "The network loads but does not run: export it again, with an input of"
    " [batch, 3, height, width].",
    "MODEL_OUTPUT_INVALID": "Is `output` in model.yaml right? Weights may also have gone bad.",
}


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model turned out to be."""

    task: str
    """`detect` or `classify`."""
    labels: tuple[str, ...]
    """By class id."""
    input_width: int
    """Pixels."""
    input_height: int
    """Pixels."""
    batch: int | None
    """Rows of every run; None: any number."""
    output: str
    """How it is read: the layout of a detector, the scores of a classifier."""
    temperature: float | None
    """Of a classifier."""
    provider: str
    run_ms: float
    """Of one image, the median of a few runs, ms."""

    def as_dict(self) -> dict[str, object]:
        """Return the same for JSON."""
        return asdict(self)


def files(path: Path) -> tuple[Path, Path]:
    """Return a model's network and `model.yaml`, which may be missing, given the first's folder.

    Args:
        path: a folder with a `model.onnx`, or an `.onnx` file of any name.
    """
    onnx = path / "model.onnx" if path.is_dir() else path
    return onnx, onnx.with_name("model.yaml")


def check_files(onnx: Path, yaml: Path, runtime: Runtime) -> ModelDescription:
    """Load a model from its files, and run it.

    Args:
        onnx: the network.
        yaml: what its owner says; may be missing.
        runtime: how it is to be run.

    Raises:
        RepositoryError: it cannot be used; a second sentence says what may help.
    """
    try:
        return describe(load_files(onnx.stem, "", onnx, yaml, runtime))
    except ModelSpecError as error:
        raise RepositoryError(str(error)) from error
    except ModelError as error:
        what = error.message if str(onnx) in error.message else f"{onnx}: {error.message}"
        raise RepositoryError(f"{what.rstrip('.')}. {_HINTS[error.reason]}") from error


def describe(model: Model) -> ModelDescription:
    """Run a loaded model on a grey image, and return what it is.

    Raises:
        ModelError: it fails, or puts out nonsense.
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
        run_ms=round(seconds * 1000, 3),
    )


def _try_out(model: Model) -> float:
    """Return the seconds of a run."""
    network = model.network
    height, width = network.input_size
    grey = np.full((height, width, 3), 114, dtype=np.uint8)
    if isinstance(network, OnnxClassifier):
        network.classify(grey, temperature=model.spec.temperature, top_k=model.spec.top_k)
    else:
        network.detect(grey)
    batch, _ = network.prepare(grey)
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        network.run(batch)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)
