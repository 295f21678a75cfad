"""Common base of the ONNX networks, detectors and classifiers, and checks of their metadata."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicekit.contract_bounds import MAX_CLASS_NAME_BYTES
from servicekit.names import readable
from vision.errors import ModelError
from vision.letterbox import Letterbox
from vision.metadata import ModelMetadata, check_names
from vision.onnx_session import OnnxSession


class OnnxNetwork(ABC):
    """A network whose input is an image. Thread-safe.

    Attributes:
        session: for access to the model's tensors.
        names: class id to label, ids 0 to N - 1.
        input_size: height and width of the input, in pixels.
    """

    def __init__(
        self, session: OnnxSession, names: Mapping[int, str], input_size: tuple[int, int]
    ) -> None:
        self.session = session
        self.names = names
        self.input_size = input_size

    @property
    def batch_size(self) -> int | None:
        """Rows of every run of the model; None if it accepts any number."""
        return self.session.batch_size

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers of the session, first choice first."""
        return self.session.providers

    @property
    def provider(self) -> str:
        """The execution provider in use: the first one of the session."""
        return self.session.providers[0]

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file in hex; serves as the version if none is configured."""
        return self.session.sha256

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Letterbox | None]:
        """Convert an RGB image ``[H, W, 3]`` to the input ``[1, 3, h, w]`` and its letterbox."""

    def warm_up(self, rows: int = 1) -> None:
        """Prepare and run a black image, so that the first request is not delayed.

        Args:
            rows: images in the largest run to expect, at least 1. A GPU prepares for each number of
                rows; TensorRT builds an engine for all numbers between 1 and this one.

        Raises:
            ModelError: ``MODEL_RUN_FAILED``.
        """
        batch, _ = self.prepare(np.zeros((*self.input_size, 3), dtype=np.uint8))
        for size in sorted({1, rows}):
            self.run(np.repeat(batch, size, axis=0))

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch ``[N, 3, h, w]``, N >= 1, and return the first output ``[N, ...]``.

        Raises:
            ValueError: the batch does not have the shape of the input.
            ModelError: ``MODEL_RUN_FAILED``: the runtime or its device failed.
        """
        return np.asarray(self.session.run(batch)[0], dtype=np.float32)


def choose_names(names: Mapping[int, str] | None, metadata: ModelMetadata) -> Mapping[int, str]:
    """Return the configured labels, or else those of the metadata.

    Labels of more than 256 bytes, as prompts of an open vocabulary are, are shortened: the log and
    the contract take no longer ones. It is done here, so that device and cloud have the same.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: there are none, or they are not a map of the ids
            0 to N - 1.
    """
    if names is not None:
        return _shortened(check_names(names, "names"))
    if metadata.names is None:
        raise ModelError(
            "MODEL_METADATA_INVALID",
            f"{metadata.missing('names')}, and no labels are configured: set `labels` in "
            "model.yaml, or the argument names",
        )
    return _shortened(metadata.names)


def _shortened(names: Mapping[int, str]) -> Mapping[int, str]:
    return MappingProxyType(
        {class_id: readable(label, MAX_CLASS_NAME_BYTES) for class_id, label in names.items()}
    )


def choose_task(task: str | None, metadata: ModelMetadata, allowed: Sequence[str]) -> str:
    """Return the configured task, or else that of the metadata, or else the first one allowed.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``: the metadata declares another task, or one that is not
            allowed.
    """
    chosen = task or metadata.task or allowed[0]
    if chosen not in allowed or metadata.task not in (None, chosen):
        expected = repr(task) if task in allowed else " or ".join(map(repr, allowed))
        raise ModelError(
            "MODEL_UNSUPPORTED", f"key 'task' must be {expected}, got {metadata.task or task!r}"
        )
    return chosen


def choose_size(
    session: OnnxSession,
    metadata: ModelMetadata,
    configured: tuple[int, int] | None = None,
    *,
    setting: str = "`input`",
) -> tuple[int, int]:
    """Return height and width of the input: of a fixed shape, or configured, or of the metadata.

    Args:
        session: of the model.
        metadata: of the model.
        configured: height and width in pixels, for an input that accepts any size.
        setting: key of `model.yaml` that configures the size.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: the input accepts any size and none is given;
            ``MODEL_UNSUPPORTED``: the input is not an image.
    """
    preferred = configured or metadata.input_size
    match session.inputs[0].shape:
        case (_, 3 | None, height, width) if None in (height, width) and preferred is None:
            raise ModelError(
                "MODEL_METADATA_INVALID",
                f"the input accepts any size and {metadata.missing('imgsz')}: set {setting} in "
                "model.yaml to the size, or export the model with a fixed size",
            )
        case (_, 3 | None, height, width):
            return height or (preferred or (0, 0))[0], width or (preferred or (0, 0))[1]
    raise ModelError(
        "MODEL_UNSUPPORTED",
        f"the input must be [batch, 3, height, width], got {list(session.inputs[0].shape)}",
    )


def output_shapes(session: OnnxSession, input_size: tuple[int, int]) -> list[list[int]]:
    """Return the shape of each output, from a run of one row if the file does not declare it.

    The first axis, the batch, has no meaning.

    Raises:
        ModelError: ``MODEL_RUN_FAILED``.
    """
    declared = [output.shape for output in session.outputs]
    if all(shape and None not in shape[1:] for shape in declared):
        return [[1, *(axis or 0 for axis in shape[1:])] for shape in declared]
    outputs = session.run(np.zeros((1, 3, *input_size), dtype=np.float32))
    return [list(output.shape) for output in outputs]
