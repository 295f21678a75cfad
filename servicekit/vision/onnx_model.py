"""A YOLO detector in ONNX Runtime: the session, and what its metadata says about its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from servicekit.vision.errors import ModelError
from servicekit.vision.letterbox import Letterbox, letterbox_image
from servicekit.vision.metadata import ModelMetadata, check_names, parse_metadata
from servicekit.vision.onnx_session import CPU, OnnxSession
from servicekit.vision.yolo import (
    Detections,
    Layout,
    decode_end_to_end,
    decode_yolov8,
    detect_layout,
)


class OnnxDetector:
    """A loaded detector. Every method is safe to call from several threads at once.

    Attributes:
        names: class id to label, ids 0 to N - 1.
        input_size: height and width of the input, in pixels.
        layout: how the output is read.
    """

    def __init__(self, session: OnnxSession, names: Mapping[int, str] | None = None) -> None:
        """Make a detector of a session; `load` is the usual way.

        Args:
            session: of a detection model.
            names: labels to use in place of the metadata's; None to use those.

        Raises:
            ModelError: ``MODEL_METADATA_INVALID`` or ``MODEL_UNSUPPORTED``, naming the key or the
                tensor; ``MODEL_RUN_FAILED`` where the output's shape has to be found by a run.
        """
        metadata = parse_metadata(session.metadata)
        self._session = session
        self.names = _choose_names(names, metadata)
        _check_task(metadata)
        self.input_size = _choose_size(session.input_shape, metadata)
        shape = [known for known in session.output_shape if known is not None]
        if len(shape) < len(session.output_shape):
            shape = list(self.run(self._blank()).shape)
        self.layout = detect_layout(shape, len(self.names), metadata)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        providers: Sequence[str] = (CPU,),
        intra_op_threads: int | None = None,
        names: Mapping[int, str] | None = None,
    ) -> "OnnxDetector":
        """Load a model file; for the arguments see `OnnxSession.load` and the constructor.

        Raises:
            ModelError: the file, its metadata, its layout or the providers cannot be used.
        """
        return cls(OnnxSession.load(Path(path), providers, intra_op_threads), names)

    @property
    def batch_size(self) -> int | None:
        """Rows of every run of the model, or None when it takes any number."""
        return self._session.batch_size

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers that the session has, first choice first."""
        return self._session.providers

    @property
    def provider(self) -> str:
        """The execution provider in use: the first that the session has."""
        return self._session.providers[0]

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file in hex; a version where none is given."""
        return self._session.sha256

    def warm_up(self) -> None:
        """Run once on an empty input, so that the first caller does not pay for it.

        Raises:
            ModelError: ``MODEL_RUN_FAILED``.
        """
        self.run(self._blank())

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Letterbox]:
        """One RGB picture ``[H, W, 3]`` to the input ``[1, 3, h, w]`` and how it lies in it."""
        return letterbox_image(image, self.input_size)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run ``[N, 3, h, w]``, any N >= 1, to the output ``[N, rows, columns]``.

        Raises:
            ValueError: the batch does not have the shape of the input.
            ModelError: ``MODEL_RUN_FAILED``: the runtime or its device failed.
        """
        return self._session.run(batch)

    def decode(
        self,
        output: NDArray[np.float32],
        box: Letterbox,
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
    ) -> Detections:
        """One picture's output ``[rows, columns]`` to detections in its pixels.

        `iou` has no effect on an end-to-end model. For the parameters and errors see
        `decode_yolov8` and `decode_end_to_end`.
        """
        if self.layout is Layout.END_TO_END:
            return decode_end_to_end(
                output,
                box,
                n_classes=len(self.names),
                confidence=confidence,
                max_detections=max_detections,
            )
        return decode_yolov8(
            output, box, confidence=confidence, iou=iou, max_detections=max_detections
        )

    def detect(
        self,
        image: NDArray[np.uint8],
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
    ) -> Detections:
        """Find objects in one RGB picture ``[H, W, 3]``: `prepare`, `run` and `decode`."""
        batch, box = self.prepare(image)
        (output,) = self.run(batch)
        return self.decode(
            output, box, confidence=confidence, iou=iou, max_detections=max_detections
        )

    def _blank(self) -> NDArray[np.float32]:
        return np.zeros((1, 3, *self.input_size), dtype=np.float32)


def _choose_names(names: Mapping[int, str] | None, metadata: ModelMetadata) -> Mapping[int, str]:
    if names is not None:
        return check_names(names, "names")
    if metadata.names is None:
        raise ModelError("MODEL_METADATA_INVALID", "key 'names' is missing and none were given")
    return metadata.names


def _check_task(metadata: ModelMetadata) -> None:
    if metadata.task not in (None, "detect"):
        raise ModelError("MODEL_UNSUPPORTED", f"key 'task' must be 'detect', is {metadata.task!r}")


def _choose_size(input_shape: tuple[int | None, ...], metadata: ModelMetadata) -> tuple[int, int]:
    """A fixed shape decides, since the session takes no other; else the metadata does."""
    match input_shape:
        case (_, 3 | None, int(height), int(width)):
            return height, width
        case (_, 3 | None, None, None) if metadata.input_size is not None:
            return _on_stride(metadata.input_size, metadata.stride)
        case (_, 3 | None, None, None):
            raise ModelError(
                "MODEL_METADATA_INVALID", "key 'imgsz' is missing and the input takes any size"
            )
    raise ModelError(
        "MODEL_UNSUPPORTED", f"the input must be [batch, 3, height, width], is {list(input_shape)}"
    )


def _on_stride(size: tuple[int, int], stride: int | None) -> tuple[int, int]:
    if stride is not None and any(side % stride for side in size):
        raise ModelError(
            "MODEL_METADATA_INVALID",
            f"key 'imgsz' must be multiples of the stride {stride}, is {list(size)}",
        )
    return size
