"""Common base of the ONNX networks, detectors and classifiers, and checks of their metadata."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: there are none, or they are not a map of the ids
            0 to N - 1.
    """
    if names is not None:
        return check_names(names, "names")
    if metadata.names is None:
        raise ModelError(
            "MODEL_METADATA_INVALID", "key 'names' is missing and no labels are configured"
        )
    return metadata.names


def check_task(metadata: ModelMetadata, task: str) -> None:
    """Check that the metadata does not declare another task.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``.
    """
    if metadata.task not in (None, task):
        raise ModelError("MODEL_UNSUPPORTED", f"key 'task' must be {task!r}, got {metadata.task!r}")


def choose_size(session: OnnxSession, preferred: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the input: those of a fixed shape, or else the preferred ones.

    Args:
        session: of the model.
        preferred: height and width in pixels, for an input that accepts any size.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: the input accepts any size and none is preferred;
            ``MODEL_UNSUPPORTED``: the input is not an image.
    """
    shape = session.inputs[0].shape
    match shape:
        case (_, 3 | None, int(height), int(width)):
            return height, width
        case (_, 3 | None, None, None) if preferred is not None:
            return preferred
        case (_, 3 | None, None, None):
            raise ModelError(
                "MODEL_METADATA_INVALID",
                "the input accepts any size: set key 'imgsz', or the crop of a classifier",
            )
    raise ModelError(
        "MODEL_UNSUPPORTED", f"the input must be [batch, 3, height, width], got {list(shape)}"
    )


def output_shape(session: OnnxSession, input_size: tuple[int, int]) -> list[int]:
    """Return the shape of the first output, from a run of one row if the file does not declare it.

    The first axis, the batch, has no meaning.

    Raises:
        ModelError: ``MODEL_RUN_FAILED``.
    """
    known = [axis for axis in session.outputs[0].shape[1:] if axis is not None]
    if session.outputs[0].shape and len(known) == len(session.outputs[0].shape) - 1:
        return [1, *known]
    (first, *_) = session.run(np.zeros((1, 3, *input_size), dtype=np.float32))
    return list(first.shape)
