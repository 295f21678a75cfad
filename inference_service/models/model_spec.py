"""`model.yaml`: the owner's description of a model. The ONNX metadata supplies missing keys.

    task: detect                  # or segment, pose, obb, classify; default: the metadata's
    description: scratches, pits and stains on metal plates
    license: Apache-2.0
    labels: [scratch, pit, stain] # or a map of class id to label; default: the metadata's
    input: {width: 320, height: 320}  # checked against the model; default: the model's
    defect_labels: [scratch, pit, stain]  # labels that mark a part as defective
    batching: {max_size: 8, max_wait_ms: 2}  # default: the server's settings

    thresholds:                   # not for classify; defaults for requests
      confidence: 0.25
      iou: 0.7
      max_detections: 300
      mask_format: polygon        # or rle (run lengths), off; segment only
      polygon_tolerance: 1        # pixels; segment only
    layout: yolov8                # not for classify: or end_to_end, yolov5, rtdetr, rtdetr_scores;
                                  # default: from the metadata, or else from a run on noise
    keypoint_shape: [17, 3]       # pose only: number of keypoints, and 2 or 3 values of each
    keypoint_names: [nose, ...]   # pose only; default: the metadata's, or else their numbers

    preprocess:                   # classify only, as the three keys below
      resize: 256                 # the shorter side; or {width: 256, height: 256}: exactly
      crop: 224                   # or {width: 224, height: 224}; default: the model's input
      interpolation: bilinear     # or bicubic; both antialias
      mean: [0.485, 0.456, 0.406]
      std: [0.229, 0.224, 0.225]
    output: logits                # or probabilities; default: the exporter's, else logits
    temperature: 1.5              # `sightline models calibrate` finds it
    top_k: 5                      # default for requests

Every key is optional, and so is the file.
"""

import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from servicekit.contract_bounds import MAX_DETECTIONS, MAX_POLYGON_TOLERANCE
from servicekit.mask_formats import POLYGON_TOLERANCE, MaskFormat
from vision import Interpolation, Layout, Preprocess, Scores
from vision.model_files import read_regular_file

_OF_TASKS = {
    ("detect", "segment", "pose", "obb"): ("thresholds", "layout"),
    ("pose",): ("keypoint_shape", "keypoint_names"),
    ("classify",): ("preprocess", "output", "temperature", "top_k"),
}
_MAX_SIDE = 16_384  # pixels


class ModelSpecError(Exception):
    """An unusable `model.yaml`. The message contains the file and the key."""


def _numbered(labels: object) -> object:
    return dict(enumerate(labels)) if isinstance(labels, list) else labels


def _off(value: object) -> object:
    return "off" if value is False else value  # YAML reads `off` as false


def _square(side: object) -> object:
    return {"width": side, "height": side} if type(side) is int else side


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InputSize(_Part):
    """Size of the network's input, or of an image during preprocessing."""

    width: int = Field(ge=1, le=_MAX_SIDE)
    """Pixels."""
    height: int = Field(ge=1, le=_MAX_SIDE)
    """Pixels."""


class ModelThresholds(_Part):
    """Default thresholds of requests. Their own defaults are those of ultralytics."""

    confidence: float = Field(default=0.25, ge=0, le=1)
    """Detections must be above it."""
    iou: float = Field(default=0.7, ge=0, le=1)
    """Overlap above which boxes of one class are merged. No effect on end-to-end models."""
    max_detections: int = Field(default=300, ge=1, le=MAX_DETECTIONS)
    """Maximum number per image."""
    mask_format: Annotated[MaskFormat, BeforeValidator(_off)] = "polygon"
    """Format of the masks: polygons, COCO's run lengths, or none. Task segment only."""
    polygon_tolerance: float = Field(default=POLYGON_TOLERANCE, ge=0, le=MAX_POLYGON_TOLERANCE)
    """Largest distance between a polygon and its mask's outline, pixels. Task segment only."""


_TAGS = ("<side>", "<size>")  # of the union's members, in pydantic's errors only
_Side = Annotated[int, Field(ge=1, le=_MAX_SIDE), Tag(_TAGS[0])]
_Resize = Annotated[
    _Side | Annotated[InputSize, Tag(_TAGS[1])],
    Discriminator(lambda value: _TAGS[isinstance(value, dict | InputSize)]),
]
_Level = Annotated[float, Field(allow_inf_nan=False)]
_Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PreprocessSpec(_Part):
    """Parameters of a classifier's preprocessing. The defaults do not change the colours."""

    resize: _Resize | None = None
    """Length of the shorter side in pixels, or an exact size; None: the crop's shorter side."""
    crop: Annotated[InputSize, BeforeValidator(_square)] | None = None
    """Size of the centre crop; None: the size of the network's input."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of the resize; both antialias, as in Pillow."""
    mean: tuple[_Level, _Level, _Level] = Field(default=(0.0, 0.0, 0.0), strict=False)
    """Mean of red, green and blue in 0..1, which is subtracted."""
    std: tuple[_Spread, _Spread, _Spread] = Field(default=(1.0, 1.0, 1.0), strict=False)
    """Standard deviation of the same, above 0, by which they are divided."""

    def to_vision(self) -> Preprocess:
        """Return the parameters for `vision`."""
        resize, crop = self.resize, self.crop
        return Preprocess(
            resize=(resize.height, resize.width) if isinstance(resize, InputSize) else resize,
            crop=(crop.height, crop.width) if crop else None,
            interpolation=Interpolation(self.interpolation),
            mean=self.mean,
            std=self.std,
        )


class Batching(_Part):
    """Batching of requests. No effect on models that accept one row only."""

    max_size: int | None = Field(default=None, ge=1, le=1024)
    """Maximum rows of one run; 1: no batches; None: the server's setting."""
    max_wait_ms: float | None = Field(default=None, ge=0, le=1000, allow_inf_nan=False)
    """Maximum wait of the first row of a batch, ms; None: the server's setting."""


ModelTaskName = Literal["detect", "segment", "pose", "obb", "classify"]


class ModelSpec(_Part):
    """A `model.yaml`."""

    task: ModelTaskName = "detect"
    description: str = ""
    license: str = ""
    """SPDX identifier; empty: not declared."""
    labels: Annotated[dict[int, str], BeforeValidator(_numbered)] | None = None
    """Class id to label; None: those of the metadata."""
    input: InputSize | None = None
    """Size of the input; None: the model's."""
    thresholds: ModelThresholds = ModelThresholds()
    """Not for classify."""
    layout: Annotated[Layout | None, Field(strict=False)] = None
    """Not for classify: the layout of the output; None: of the metadata, or found by a run on
    noise."""
    keypoint_shape: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1000)], Literal[2, 3]] | None, Field(strict=False)
    ] = None
    """Pose only: number of keypoints, and values of each; None: those of the metadata."""
    keypoint_names: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    """Pose only: a name for each keypoint; None: see `vision.keypoints`."""
    preprocess: PreprocessSpec | None = None
    """Classify only; None: the exporter's."""
    output: Literal["logits", "probabilities"] | None = None
    """Classify only: the kind of score; None: the exporter's, else logits."""
    temperature: float = Field(default=1.0, gt=0, le=100, allow_inf_nan=False)
    """Classify only: logits are divided by it before they become probabilities."""
    top_k: int = Field(default=5, ge=1, le=1000)
    """Classify only: default number of classes per image."""
    batching: Batching = Batching()
    defect_labels: tuple[str, ...] = Field(default=(), strict=False)
    """Labels that mark a part as defective; empty: the model gives no verdict."""

    @property
    def scores(self) -> Scores | None:
        """Kind of a classifier's scores; None: the exporter's, else logits."""
        return Scores(self.output) if self.output else None


def read(path: Path) -> ModelSpec:
    """Read a `model.yaml`; return the defaults if it is missing or empty.

    Raises:
        ModelSpecError: the file cannot be read, is not YAML, or has an invalid or unknown key.
    """
    try:
        return _parse(path, read_regular_file(path))
    except FileNotFoundError:
        return ModelSpec()
    except OSError as error:
        raise ModelSpecError(f"{path}: cannot be read: {error.strerror}") from error


def write_temperature(path: Path, value: float) -> None:
    """Set the temperature in a `model.yaml`, and leave every other character unchanged.

    The file is replaced atomically: a reader sees the old content or the new one.

    Args:
        path: of a classifier's `model.yaml`.
        value: above 0 and at most 100; written with at most six decimals.

    Raises:
        ModelSpecError: the file cannot be read or written or is not that of a classifier, or the
            value is out of range.
    """
    try:
        content = read_regular_file(path)
        before = _parse(path, content)
        text = content.decode()
        root = yaml.compose(text)
        if before.task != "classify" or not isinstance(root, yaml.MappingNode):
            raise ModelSpecError(_misplaced(path, "temperature", ("classify",), before))
        changed = _with_temperature(text, root, _decimal(value)).encode()
        after = _parse(path, changed)
        if after != before.model_copy(update={"temperature": after.temperature}):
            raise ModelSpecError(
                f"{path}: cannot be changed: add `temperature: {value:.6f}` yourself"
            )
        _replace(path, changed)
    except OSError as error:
        raise ModelSpecError(f"{path}: cannot be changed: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelSpecError(f"{path}: must be UTF-8: {error.reason}") from error


def check_defect_labels(spec: ModelSpec, names: Mapping[int, str]) -> None:
    """Check that the defect labels are labels of the model.

    Raises:
        ModelSpecError: a label is unknown.
    """
    unknown = [label for label in spec.defect_labels if label not in names.values()]
    if unknown:
        raise ModelSpecError(
            f"defect_labels: must be labels of the model, {', '.join(names.values())}"
            f" (got {unknown[0]!r})"
        )


def _parse(path: Path, content: bytes) -> ModelSpec:
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ModelSpecError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping | None):
        raise ModelSpecError(f"{path}: must be a map of keys to values")
    try:
        spec = ModelSpec.model_validate(document or {})
    except ValidationError as error:
        raise ModelSpecError(f"{path}: {_sentences(error)}") from error
    _check_task(path, spec)
    return spec


def _check_task(path: Path, spec: ModelSpec) -> None:
    for tasks, keys in _OF_TASKS.items():
        misplaced = sorted(spec.model_fields_set.intersection(keys))
        if misplaced and spec.task not in tasks:
            raise ModelSpecError(_misplaced(path, misplaced[0], tasks, spec))


def _misplaced(path: Path, key: str, tasks: Sequence[str], spec: ModelSpec) -> str:
    allowed = f"task {tasks[0]}" if len(tasks) == 1 else f"tasks {', '.join(tasks)}"
    return f"{path}: {key}: is allowed for {allowed} only (the task is {spec.task})"


def _decimal(value: float) -> str:
    """Return a number in YAML without exponent, since YAML reads 1e-06 as text."""
    text = f"{value:.6f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _with_temperature(text: str, root: yaml.MappingNode, value: str) -> str:
    for key, node in reversed(root.value):
        if key.value == "temperature":
            return f"{text[: node.start_mark.index]}{value}{text[node.end_mark.index :]}"
    if root.flow_style:
        at = root.end_mark.index - 1
        return f"{text[:at]}, temperature: {value}{text[at:]}"
    line_break = "\r\n" if "\r\n" in text else "\n"
    start = text if text.endswith("\n") else f"{text}{line_break}"
    return f"{start}{' ' * root.start_mark.column}temperature: {value}{line_break}"


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sentences(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if part not in _TAGS)
        if problem["type"] == "extra_forbidden":
            problems.append(f"{key}: is not a key of model.yaml")
        else:
            rule = problem["msg"].replace("Input should be", "must be")
            problems.append(f"{key}: {rule} (got {problem['input']!r})")
    return "; ".join(problems)
