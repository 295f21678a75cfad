"""What every network in ONNX Runtime has, whatever it looks for."""

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
    """A session whose input is an image. Every method is safe in several threads at once.

    Attributes:
        session: for the model's tensors as they are.
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
        """Rows of every run of the model, or None when it takes any number."""
        return self.session.batch_size

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers that the session has, first choice first."""
        return self.session.providers

    @property
    def provider(self) -> str:
        """The execution provider in use: the first that the session has."""
        return self.session.providers[0]

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file in hex; a version where none is given."""
        return self.session.sha256

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Letterbox | None]:
        """One RGB image ``[H, W, 3]`` to the input ``[1, 3, h, w]`` and how it lies in it."""

    def warm_up(self, rows: int = 1) -> None:
        """Prepare and run a black image, so that the first caller does not pay for it.

        Args:
            rows: images of the largest run to come, at least 1. A GPU prepares for each number
                of rows; TensorRT builds an engine for all that lie between 1 and this.

        Raises:
            ModelError: ``MODEL_RUN_FAILED``.
        """
        batch, _ = self.prepare(np.zeros((*self.input_size, 3), dtype=np.uint8))
        for size in sorted({1, rows}):
            self.run(np.repeat(batch, size, axis=0))

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run ``[N, 3, h, w]``, any N >= 1, to the first output ``[N, ...]``.

        Raises:
            ValueError: the batch does not have the shape of the input.
            ModelError: ``MODEL_RUN_FAILED``: the runtime or its device failed.
        """
        return np.asarray(self.session.run(batch)[0], dtype=np.float32)


def choose_names(names: Mapping[int, str] | None, metadata: ModelMetadata) -> Mapping[int, str]:
    """The given labels, or else the metadata's.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: neither, or no map of ids 0 to N - 1.
    """
    if names is not None:
        return check_names(names, "names")
    if metadata.names is None:
        raise ModelError("MODEL_METADATA_INVALID", "key 'names' is missing and none were given")
    return metadata.names


def check_task(metadata: ModelMetadata, task: str) -> None:
    """Check that the metadata names no other task.

    Raises:
        ModelError: ``MODEL_UNSUPPORTED``.
    """
    if metadata.task not in (None, task):
        raise ModelError("MODEL_UNSUPPORTED", f"key 'task' must be {task!r}, is {metadata.task!r}")


def choose_size(session: OnnxSession, asked: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the input: a fixed shape decides, since the session takes no other.

    Args:
        session: of the model.
        asked: height and width, in pixels, of an input that takes any.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: the input takes any size and none is asked for;
            ``MODEL_UNSUPPORTED``: the input is no image.
    """
    shape = session.inputs[0].shape
    match shape:
        case (_, 3 | None, int(height), int(width)):
            return height, width
        case (_, 3 | None, None, None) if asked is not None:
            return asked
        case (_, 3 | None, None, None):
            raise ModelError(
                "MODEL_METADATA_INVALID",
                "the input takes any size: key 'imgsz', or a classifier's crop, must say which",
            )
    raise ModelError(
        "MODEL_UNSUPPORTED", f"the input must be [batch, 3, height, width], is {list(shape)}"
    )


def output_shape(session: OnnxSession, input_size: tuple[int, int]) -> list[int]:
    """Shape of the first output; found by a run of one row where the file does not say.

    The first axis, the batch, is whatever it is.

    Raises:
        ModelError: ``MODEL_RUN_FAILED``.
    """
    known = [axis for axis in session.outputs[0].shape[1:] if axis is not None]
    if session.outputs[0].shape and len(known) == len(session.outputs[0].shape) - 1:
        return [1, *known]
    (first, *_) = session.run(np.zeros((1, 3, *input_size), dtype=np.float32))
    return list(first.shape)
