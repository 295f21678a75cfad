"""Trial of a model before it is served: load it, run it, and describe it or its errors."""

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
    "MODEL_FILE_MISSING": "Give an .onnx file, or a folder with a model.onnx.",
    "MODEL_FILE_INVALID": "Export it again, and keep its external data, if any, beside it.",
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
    """`detect` or `classify`."""
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
    run_ms: float
    """Duration of a run of one image, median of a few runs, ms."""

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
        raise RepositoryError(f"{problem.rstrip('.')}. {_HINTS[error.reason]}") from error


def describe(model: Model) -> ModelDescription:
    """Run a loaded model on a grey image, and return its properties.

    Raises:
        ModelError: it fails, or its output is invalid.
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
    """Run a model several times, and return the median duration, s."""
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
        started = time.perf_counter()
        network.run(batch)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
