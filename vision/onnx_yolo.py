"""YOLO detectors in ONNX Runtime: session, letterbox and decoding of the output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servicekit.mask_formats import MaskFormat
from vision.detections import Detections
from vision.errors import ModelError
from vision.keypoints import choose_keypoint_names, choose_keypoint_shape
from vision.layouts import Layout, detect_layout
from vision.letterbox import Letterbox, letterbox_image
from vision.masks import OnMask, keep_mask
from vision.metadata import ModelMetadata, parse_metadata
from vision.network import (
    OnnxNetwork,
    choose_names,
    choose_size,
    choose_task,
    output_shapes,
)
from vision.onnx_session import OnnxSession
from vision.session_options import DEFAULT_OPTIONS, SessionOptions
from vision.yolo import YoloHead, decode_output

YOLO_TASKS = ("detect", "segment", "pose", "obb")
"""Tasks of `OnnxYolo`."""

_INPUT_BYTES = 3 * 4 + 2 * 3  # per pixel: input, scaled image, colour planes
_MASK_BYTES = 6  # per pixel: the mask, and copies for run lengths or outlines
_NOISE = 0  # seed of the picture that tells layouts apart


class OnnxYolo(OnnxNetwork):
    """A loaded detector of the tasks detect, segment, pose and obb. Thread-safe.

    Attributes:
        task: ``detect``, ``segment``, ``pose`` or ``obb``.
        layout: the layout of the output.
        keypoint_names: a name for each keypoint of a pose model; empty for other tasks.
    """

    def __init__(
        self,
        session: OnnxSession,
        names: Mapping[int, str] | None = None,
        *,
        task: str | None = None,
        layout: Layout | str | None = None,
        input_size: tuple[int, int] | None = None,
        keypoint_shape: tuple[int, int] | None = None,
        keypoint_names: Sequence[str] | None = None,
    ) -> None:
        """Create a detector from a session; `load` is the usual way.

        What is None is taken from the metadata of the model.

        Args:
            session: of a detection model.
            names: labels by class id.
            task: one of `YOLO_TASKS`; without metadata ``detect``.
            layout: of the output. Where the metadata does not determine it, a run on noise does.
            input_size: height and width in pixels, of a model that accepts any size.
            keypoint_shape: of a pose model: keypoints of an object, and values of each, 2 or 3.
            keypoint_names: of a pose model, a name for each keypoint.

        Raises:
            ModelError: ``MODEL_METADATA_INVALID`` or ``MODEL_UNSUPPORTED``, with the key or the
                tensor; ``MODEL_RUN_FAILED`` if the model has to be run to determine its output.
        """
        metadata = parse_metadata(session.metadata)
        chosen = choose_names(names, metadata)
        self.task = choose_task(task, metadata, YOLO_TASKS)
        size = choose_size(session, metadata, input_size)
        _check_stride(size, session, metadata)
        super().__init__(session, chosen, size)
        shapes = output_shapes(session, size)
        self._rows = 0
        self._prototypes: int | None = None
        if self.task == "segment":
            self._rows = _first_of_rank(shapes, 3) or 0
            self._prototypes = _first_of_rank(shapes, 4)
        points = (0, 0)
        self.keypoint_names: tuple[str, ...] = ()
        if self.task == "pose":
            points = choose_keypoint_shape(keypoint_shape, metadata)
            self.keypoint_names = choose_keypoint_names(
                keypoint_names, metadata, points[0], list(chosen.values())
            )
        extra = self._extra_columns(shapes, points)
        self.layout = detect_layout(
            shapes[self._rows],
            len(chosen),
            metadata,
            extra=extra,
            declared=_declared(layout),
            probe=self._look_at_noise,
        )
        self._head = YoloHead(self.layout, len(chosen), self.task, extra, points)

    @classmethod
    def load(
        cls,
        path: Path | str,
        options: SessionOptions = DEFAULT_OPTIONS,
        *,
        names: Mapping[int, str] | None = None,
        task: str | None = None,
        layout: Layout | str | None = None,
        input_size: tuple[int, int] | None = None,
        keypoint_shape: tuple[int, int] | None = None,
        keypoint_names: Sequence[str] | None = None,
    ) -> "OnnxYolo":
        """Load a model file; for the arguments see `OnnxSession.load` and the constructor.

        Raises:
            ModelError: the file, its metadata, its layout or the providers cannot be used.

        Example:
            >>> from vision import OnnxYolo
            >>> OnnxYolo.load("models/repository/plates/1/model.onnx").task
            'detect'
        """
        return cls(
            OnnxSession.load(Path(path), options),
            names,
            task=task,
            layout=layout,
            input_size=input_size,
            keypoint_shape=keypoint_shape,
            keypoint_names=keypoint_names,
        )

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Letterbox]:
        """Convert an RGB image ``[H, W, 3]`` to the input ``[1, 3, h, w]`` and its letterbox."""
        stretch = self.layout in (Layout.RTDETR, Layout.RTDETR_SCORES)
        return letterbox_image(image, self.input_size, stretch=stretch)

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
        """Decode one image's output ``[rows, columns]`` into detections in image pixels, no masks.

        For the parameters and errors see `decode_output`.
        """
        return decode_output(
            self._head,
            np.asarray(output, dtype=np.float32),
            box,
            self.input_size,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
        )

    def decode_outputs(
        self,
        outputs: Sequence[NDArray[Any]],
        box: Letterbox,
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
        mask_format: MaskFormat = "off",
        tolerance: float = 1.0,
        on_mask: OnMask = keep_mask,
    ) -> Detections:
        """Decode all outputs of one image, each without its batch axis, in the session's order.

        For the parameters and errors see `decode_output`.
        """
        prototypes = None if self._prototypes is None else outputs[self._prototypes]
        wanted = prototypes is not None and mask_format != "off"
        return decode_output(
            self._head,
            np.asarray(outputs[self._rows], dtype=np.float32),
            box,
            self.input_size,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            prototypes=np.asarray(prototypes, dtype=np.float32) if wanted else None,
            mask_format=mask_format,
            tolerance=tolerance,
            on_mask=on_mask,
        )

    def masks_bytes(self, width: int, height: int) -> int:
        """Return the bytes that `decode_outputs` allocates, at most, to make an image's masks.

        They are made one after the other, each within the box of its object.

        Args:
            width: of the upright image in pixels.
            height: of the upright image in pixels.
        """
        return 0 if self._prototypes is None else _MASK_BYTES * width * height

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch ``[N, 3, h, w]``, N >= 1, and return the output with the boxes ``[N, ...]``.

        Raises:
            ValueError: the batch does not have the shape of the input.
            ModelError: ``MODEL_RUN_FAILED``: the runtime or its device failed.
        """
        return np.asarray(self.session.run(batch)[self._rows], dtype=np.float32)

    def detect(
        self,
        image: NDArray[np.uint8],
        *,
        confidence: float = 0.25,
        iou: float = 0.7,
        max_detections: int = 300,
        mask_format: MaskFormat = "off",
        tolerance: float = 1.0,
    ) -> Detections:
        """Detect objects in one RGB image ``[H, W, 3]``: `prepare`, run and `decode_outputs`."""
        batch, box = self.prepare(image)
        return self.decode_outputs(
            [output[0] for output in self.session.run(batch)],
            box,
            confidence=confidence,
            iou=iou,
            max_detections=max_detections,
            mask_format=mask_format,
            tolerance=tolerance,
        )

    def _extra_columns(self, shapes: list[list[int]], points: tuple[int, int]) -> int:
        """Return the number of columns after the classes."""
        match self.task:
            case "segment" if self._prototypes is None:
                raise ModelError(
                    "MODEL_UNSUPPORTED",
                    "key 'task' is 'segment', which needs an output of prototypes [batch, masks, "
                    f"height, width], got outputs {shapes}",
                )
            case "segment":
                return shapes[self._prototypes or 0][1]
            case "pose":
                return points[0] * points[1]
            case "obb":
                return 1
            case _:
                return 0

    def _look_at_noise(self) -> tuple[NDArray[np.float32], tuple[int, int]]:
        noise = np.random.default_rng(_NOISE).random((1, 3, *self.input_size), dtype=np.float32)
        return self.run(noise)[0], self.input_size


def _declared(layout: Layout | str | None) -> Layout | None:
    try:
        return None if layout is None else Layout(layout)
    except ValueError as error:
        raise ModelError(
            "MODEL_UNSUPPORTED", f"layout must be one of {', '.join(Layout)}, got {layout!r}"
        ) from error


def _first_of_rank(shapes: list[list[int]], rank: int) -> int | None:
    """Return the number of the first output with so many axes."""
    return next((at for at, shape in enumerate(shapes) if len(shape) == rank), None)


def _check_stride(size: tuple[int, int], session: OnnxSession, metadata: ModelMetadata) -> None:
    """Check that a size of choice is a multiple of the stride; a fixed shape always is."""
    free = None in session.inputs[0].shape[2:]
    if free and metadata.stride is not None and any(side % metadata.stride for side in size):
        raise ModelError(
            "MODEL_METADATA_INVALID",
            f"key 'imgsz', or the configured input size, must be multiples of the stride "
            f"{metadata.stride}, got {list(size)}",
        )
