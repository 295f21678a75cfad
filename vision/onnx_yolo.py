"""YOLO detectors in ONNX Runtime: session, letterbox and decoding of the output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.errors import ModelError
from vision.letterbox import Letterbox, letterbox_image
from vision.metadata import ModelMetadata, parse_metadata
from vision.network import (
    OnnxNetwork,
    check_task,
    choose_names,
    choose_size,
    output_shape,
)
from vision.onnx_session import OnnxSession
from vision.session_options import DEFAULT_OPTIONS, SessionOptions
from vision.yolo import (
    Detections,
    Layout,
    decode_end_to_end,
    decode_yolov8,
    detect_layout,
)

_INPUT_BYTES = 3 * 4 + 2 * 3  # per pixel: input, scaled image, colour planes


class OnnxYolo(OnnxNetwork):
    """A loaded YOLO detector. Thread-safe.

    Attributes:
        layout: the layout of the output.
    """

    def __init__(self, session: OnnxSession, names: Mapping[int, str] | None = None) -> None:
        """Create a detector from a session; `load` is the usual way.

        Args:
            session: of a detection model.
            names: labels that replace those of the metadata; None to use the metadata.

        Raises:
            ModelError: ``MODEL_METADATA_INVALID`` or ``MODEL_UNSUPPORTED``, with the key or the
                tensor; ``MODEL_RUN_FAILED`` if the output's shape has to be determined by a run.
        """
        metadata = parse_metadata(session.metadata)
        chosen = choose_names(names, metadata)
        check_task(metadata, "detect")
        size = choose_size(session, metadata.input_size)
        _check_stride(size, session, metadata)
        super().__init__(session, chosen, size)
        self.layout = detect_layout(output_shape(session, size), len(chosen), metadata)

    @classmethod
    def load(
        cls,
        path: Path | str,
        options: SessionOptions = DEFAULT_OPTIONS,
        *,
        names: Mapping[int, str] | None = None,
    ) -> "OnnxYolo":
        """Load a model file; for the arguments see `OnnxSession.load` and the constructor.

        Raises:
            ModelError: the file, its metadata, its layout or the providers cannot be used.
        """
        return cls(OnnxSession.load(Path(path), options), names)

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Letterbox]:
        """Convert an RGB image ``[H, W, 3]`` to the input ``[1, 3, h, w]`` and its letterbox."""
        return letterbox_image(image, self.input_size)

    def prepare_bytes(self, width: int, height: int) -> int:
        """Return the bytes that `prepare` allocates, which do not depend on the image's size."""
        del width, height
        rows, columns = self.input_size
        return _INPUT_BYTES * rows * columns

    def decode(
        self,
        output: NDArray[Any],
        box: Letterbox,
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
    ) -> Detections:
        """Decode one image's output ``[rows, columns]`` into detections in image pixels.

        `iou` has no effect on an end-to-end model. For the parameters and errors see
        `decode_yolov8` and `decode_end_to_end`.
        """
        values = np.asarray(output, dtype=np.float32)
        if self.layout is Layout.END_TO_END:
            return decode_end_to_end(
                values,
                box,
                n_classes=len(self.names),
                confidence=confidence,
                max_detections=max_detections,
            )
        return decode_yolov8(
            values, box, confidence=confidence, iou=iou, max_detections=max_detections
        )

    def detect(
        self,
        image: NDArray[np.uint8],
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
    ) -> Detections:
        """Detect objects in one RGB image ``[H, W, 3]``: `prepare`, `run` and `decode`."""
        batch, box = self.prepare(image)
        (output,) = self.run(batch)
        return self.decode(
            output, box, confidence=confidence, iou=iou, max_detections=max_detections
        )


def _check_stride(size: tuple[int, int], session: OnnxSession, metadata: ModelMetadata) -> None:
    """Check that a size from the metadata is a multiple of the stride; a fixed shape always is."""
    free = session.inputs[0].shape[2:] == (None, None)
    if free and metadata.stride is not None and any(side % metadata.stride for side in size):
        raise ModelError(
            "MODEL_METADATA_INVALID",
            f"key 'imgsz' must be multiples of the stride {metadata.stride}, got {list(size)}",
        )
