"""Image classifiers in ONNX Runtime: session, preprocessing and decoding of the output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision.classify import Classes, Scores, decode_classes, to_logits
from vision.errors import ModelError
from vision.metadata import parse_metadata
from vision.network import (
    OnnxNetwork,
    choose_names,
    choose_size,
    choose_task,
    output_shapes,
)
from vision.onnx_session import OnnxSession
from vision.preprocess import Preprocess, preprocess_bytes, preprocess_image
from vision.session_options import DEFAULT_OPTIONS, SessionOptions


class OnnxClassifier(OnnxNetwork):
    """A loaded classifier. Thread-safe.

    Attributes:
        preprocess: preprocessing of the images.
        scores: the kind of score that it outputs.
    """

    def __init__(
        self,
        session: OnnxSession,
        names: Mapping[int, str] | None = None,
        *,
        preprocess: Preprocess | None = None,
        scores: Scores | None = None,
    ) -> None:
        """Create a classifier from a session; `load` is the usual way.

        An export of ultralytics, with ``task: classify`` in its metadata, ends in a softmax and
        expects the default `Preprocess` (or an exact resize if its input is not square).

        Args:
            session: of a classification model.
            names: labels that replace those of the metadata; None to use the metadata.
            preprocess: preprocessing of the images; None for that of the known export, or the
                defaults.
            scores: the kind of score that it outputs; None for that of the known export, or
                logits.

        Raises:
            ModelError: ``MODEL_METADATA_INVALID`` or ``MODEL_UNSUPPORTED``, with the key or the
                tensor; ``MODEL_RUN_FAILED`` if the output's shape has to be determined by a run.
        """
        metadata = parse_metadata(session.metadata)
        chosen = choose_names(names, metadata)
        choose_task(None, metadata, ["classify"])
        crop = preprocess.crop if preprocess else None
        size = choose_size(session, metadata, crop, setting="`preprocess: {crop}`")
        super().__init__(session, chosen, size)
        ultralytics = metadata.task == "classify"
        self.preprocess = preprocess or (_ultralytics(size) if ultralytics else Preprocess())
        self.scores = scores or (Scores.PROBABILITIES if ultralytics else Scores.LOGITS)
        _check_crop(self.preprocess, size)
        _check_output(output_shapes(session, size)[0], len(chosen))

    @classmethod
    def load(
        cls,
        path: Path | str,
        options: SessionOptions = DEFAULT_OPTIONS,
        *,
        names: Mapping[int, str] | None = None,
        preprocess: Preprocess | None = None,
        scores: Scores | None = None,
    ) -> "OnnxClassifier":
        """Load a model file; for the arguments see `OnnxSession.load` and the constructor.

        Raises:
            ModelError: the file, its metadata, its tensors or the providers cannot be used.
        """
        session = OnnxSession.load(Path(path), options)
        return cls(session, names, preprocess=preprocess, scores=scores)

    def prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], None]:
        """Convert an RGB image ``[H, W, 3]`` to the input ``[1, 3, h, w]``; no letterbox."""
        return preprocess_image(image, self.preprocess, self.input_size), None

    def prepare_bytes(self, width: int, height: int) -> int:
        """Return the bytes that `prepare` allocates in addition to an image of this size."""
        return preprocess_bytes(width, height, self.preprocess, self.input_size)

    def logits(self, output: NDArray[Any]) -> NDArray[np.float64]:
        """Return outputs ``[..., classes]`` as logits, to fit a temperature; see `to_logits`.

        Raises:
            ModelError: ``MODEL_OUTPUT_INVALID``.
        """
        return to_logits(output, self.scores)

    def decode(self, output: NDArray[Any], *, temperature: float = 1.0, top_k: int = 5) -> Classes:
        """Decode the output ``[classes]`` of one image; see `decode_classes`."""
        return decode_classes(output, scores=self.scores, temperature=temperature, top_k=top_k)

    def classify(
        self, image: NDArray[np.uint8], *, temperature: float = 1.0, top_k: int = 5
    ) -> Classes:
        """Classify one RGB image ``[H, W, 3]``: `prepare`, `run` and `decode`."""
        batch, _ = self.prepare(image)
        (output,) = self.run(batch)
        return self.decode(output, temperature=temperature, top_k=top_k)


def _ultralytics(size: tuple[int, int]) -> Preprocess:
    return Preprocess() if size[0] == size[1] else Preprocess(resize=size)


def _check_crop(preprocess: Preprocess, size: tuple[int, int]) -> None:
    if preprocess.crop not in (None, size):
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"the crop must be the input's height and width {list(size)}, got "
            f"{list(preprocess.crop or ())}",
        )


def _check_output(shape: list[int], classes: int) -> None:
    if shape[1:] != [classes]:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"the output must be [batch, {classes}], a score for each of {classes} labels,"
            f" got {shape}",
        )
