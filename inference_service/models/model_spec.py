"""`model.yaml`: what its owner says about a model. What it leaves out, the ONNX metadata says.

    task: detect                  # the only task so far
    description: scratches, pits and stains on metal plates
    license: Apache-2.0
    labels: [scratch, pit, stain] # or a map of class id to label; default: the metadata's
    input: {width: 320, height: 320}  # checked against the model; default: the model's
    thresholds: {confidence: 0.25, iou: 0.7, max_detections: 300}
    defect_labels: [scratch, pit, stain]  # the labels that make a part a bad one

Every key is optional, and so is the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


class ModelSpecError(Exception):
    """A `model.yaml` that cannot be used. The message names the file and the key."""


def _numbered(labels: object) -> object:
    return dict(enumerate(labels)) if isinstance(labels, list) else labels


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InputSize(_Part):
    """Size of the network's input."""

    width: int = Field(ge=1)
    """Pixels."""
    height: int = Field(ge=1)
    """Pixels."""


class Thresholds(_Part):
    """What a request that says nothing gets. The defaults are those of ultralytics."""

    confidence: float = Field(default=0.25, ge=0, le=1)
    """Detections below it are left out."""
    iou: float = Field(default=0.7, ge=0, le=1)
    """Boxes of one class that overlap by more are one. Without effect on end-to-end models."""
    max_detections: int = Field(default=300, ge=1, le=10_000)
    """Per picture."""


class ModelSpec(_Part):
    """A `model.yaml`."""

    task: Literal["detect"] = "detect"
    description: str = ""
    license: str = ""
    """SPDX identifier; empty: not said."""
    labels: Annotated[dict[int, str], BeforeValidator(_numbered)] | None = None
    """Class id to label; None: as the metadata says."""
    input: InputSize | None = None
    """None: as the model says."""
    thresholds: Thresholds = Thresholds()
    defect_labels: tuple[str, ...] = Field(default=(), strict=False)
    """The labels that make a part a bad one; empty: the model gives no verdict."""


def read(path: Path) -> ModelSpec:
    """Reads a `model.yaml`; a file that is missing or empty says nothing.

    Raises:
        ModelSpecError: the file cannot be read, is not YAML, or has a bad or unknown key.
    """
    try:
        said = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        return ModelSpec()
    except OSError as error:
        raise ModelSpecError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ModelSpecError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(said, Mapping | None):
        raise ModelSpecError(f"{path}: must be a map of keys to values")
    try:
        return ModelSpec.model_validate(said or {})
    except ValidationError as error:
        raise ModelSpecError(f"{path}: {_sentences(error)}") from error


def check_defect_labels(spec: ModelSpec, names: Mapping[int, str]) -> None:
    """Checks that the defect labels are labels of the model.

    Raises:
        ModelSpecError: one is not.
    """
    unknown = [label for label in spec.defect_labels if label not in names.values()]
    if unknown:
        raise ModelSpecError(
            f"defect_labels: must be labels of the model, {unknown[0]!r} is none of "
            f"{', '.join(names.values())}"
        )


def _sentences(error: ValidationError) -> str:
    problems = []
    for one in error.errors(include_url=False):
        key = ".".join(str(part) for part in one["loc"])
        if one["type"] == "extra_forbidden":
            problems.append(f"{key}: is no key of model.yaml")
        else:
            rule = one["msg"].replace("Input should be", "must be")
            problems.append(f"{key}: {rule} (got {one['input']!r})")
    return "; ".join(problems)
