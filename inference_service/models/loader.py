"""Loading of a model version from its folder: network, `model.yaml`, lane and warm-up."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inference_service.models.engine import Model
from inference_service.models.model_spec import (
    ModelSpec,
    ModelSpecError,
    check_defect_labels,
    read,
)
from inference_service.serving.admission import Lane
from vision import (
    YOLO_TASKS,
    ModelError,
    OnnxClassifier,
    OnnxSession,
    OnnxYolo,
    SessionOptions,
    check_mask_format,
    parse_metadata,
)
from vision.session_options import CPU

logger = logging.getLogger(__name__)

_GPU_BATCH = 8
_GPU_INSTANCES = 2  # one runs while the next is prepared; more would only share the device


class RepositoryError(Exception):
    """An unusable model or repository. The message is one sentence with the folder."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Defaults for running models, which their `model.yaml` may override."""

    session: SessionOptions = field(default_factory=SessionOptions)
    max_batch_size: int | None = None
    """Maximum rows of one run, >= 1, for models that accept any number; None: 8 on a GPU, and 1 on
    CPUs, where batches are not faster and only delay the first image."""
    batch_wait: float = 0.0
    """Time that an incomplete batch waits for more rows, s, >= 0."""


def load_model(path: Path, runtime: Runtime) -> Model:
    """Load and warm up the model in the folder `<name>/<version>`; blocks.

    Raises:
        RepositoryError: the model or its `model.yaml` is unusable.
    """
    try:
        return load_files(
            path.parent.name, path.name, path / "model.onnx", path / "model.yaml", runtime
        )
    except (ModelError, ModelSpecError) as error:
        raise RepositoryError(f"model {path.parent.name} version {path.name}: {error}") from error


def load_files(name: str, version: str, onnx: Path, yaml: Path, runtime: Runtime) -> Model:
    """Load and warm up a model from its files; blocks.

    Args:
        name: name of the model.
        version: version of the model.
        onnx: the network.
        yaml: its `model.yaml`; may be missing.
        runtime: how it is run.

    Raises:
        ModelError: the network is unusable.
        ModelSpecError: the `model.yaml` is unusable.
    """
    session = OnnxSession.load(onnx, runtime.session)
    spec = _with_task(read(yaml), session)
    network = _NETWORKS[spec.task](session, spec)
    check_defect_labels(spec, network.names)
    _check_size(spec, network)
    lane = choose_lane(spec, network, runtime)
    network.warm_up(lane.max_rows)
    model = Model(name, version, spec, network, lane)
    _log_loaded(model)
    return model


def choose_lane(spec: ModelSpec, network: OnnxYolo | OnnxClassifier, runtime: Runtime) -> Lane:
    """Return the lane of a model, from its file, its `model.yaml` and the server's defaults."""
    on_cpu = network.provider == CPU
    max_rows = spec.batching.max_size or runtime.max_batch_size or (1 if on_cpu else _GPU_BATCH)
    rows = network.batch_size or max_rows
    wait_ms = spec.batching.max_wait_ms
    wait = runtime.batch_wait if wait_ms is None else wait_ms / 1000
    return Lane(rows, wait if rows > 1 else 0.0, None if on_cpu else _GPU_INSTANCES)


def _with_task(spec: ModelSpec, session: OnnxSession) -> ModelSpec:
    """Return the spec with the exporter's task, if `model.yaml` does not set one."""
    task = parse_metadata(session.metadata).task
    if "task" in spec.model_fields_set or task not in _NETWORKS:
        return spec
    return spec.model_copy(update={"task": task})


def _make_detector(session: OnnxSession, spec: ModelSpec) -> OnnxYolo:
    size = (spec.input.height, spec.input.width) if spec.input else None
    network = OnnxYolo(
        session,
        spec.labels,
        task=spec.task,
        layout=spec.layout,
        input_size=size,
        keypoint_shape=spec.keypoint_shape,
        keypoint_names=spec.keypoint_names,
    )
    if spec.task == "segment":
        check_mask_format(spec.thresholds.mask_format)
    return network


def _make_classifier(session: OnnxSession, spec: ModelSpec) -> OnnxClassifier:
    preprocess = spec.preprocess.to_vision() if spec.preprocess else None
    return OnnxClassifier(session, spec.labels, preprocess=preprocess, scores=spec.scores)


_NETWORKS: dict[str, Callable[[OnnxSession, ModelSpec], OnnxYolo | OnnxClassifier]] = {
    **dict.fromkeys(YOLO_TASKS, _make_detector),
    "classify": _make_classifier,
}


def _check_size(spec: ModelSpec, network: OnnxYolo | OnnxClassifier) -> None:
    height, width = network.input_size
    if spec.input and (spec.input.width, spec.input.height) != (width, height):
        raise ModelSpecError(
            f"model.yaml: input: must be the model's size, {width} x {height} pixels "
            f"(got {spec.input.width} x {spec.input.height})"
        )


def _log_loaded(model: Model) -> None:
    height, width = model.network.input_size
    logger.info(
        "loaded model %s version %s: %s, %d labels, input %d x %d, batches of %d, %s",
        model.name,
        model.version,
        model.spec.task,
        len(model.network.names),
        width,
        height,
        model.lane.max_rows,
        model.network.provider,
    )
