"""Evaluation of the committed demo model on held-out plates; needs no torch.

``python -m models.evaluate`` prints one JSON line: the average precision of every class at an IoU
of 0.5, and their mean, mAP50.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from models.average_precision import Scene, average_precision
from models.plates import CLASS_NAMES, Plate, camera
from vision import OnnxYolo, SessionOptions

MODEL = Path(__file__).parent / "repository" / "plates" / "1" / "model.onnx"

_HELD_OUT_CAMERA = 500
# Low, so that the curve of precision over recall is complete.
_CONFIDENCE = 0.001
_IOU = 0.45


@dataclass(frozen=True, slots=True)
class Measures:
    """The accuracy of a model.

    Attributes:
        plates: number of plates.
        map50: mean of ap50, in 0..1.
        ap50: average precision at an IoU of 0.5 by class name, in 0..1; NaN for a class not shown.
    """

    plates: int
    map50: float
    ap50: dict[str, float]


def main() -> None:
    """Print the measures of the model as one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, default=MODEL)
    arguments.add_argument("--plates", type=int, default=500, help="number of plates, at least 1")
    parsed = arguments.parse_args()
    print(json.dumps(asdict(evaluate(parsed.model, parsed.plates))))


def evaluate(model: Path, plates: int) -> Measures:
    """Run a model over held-out plates.

    Args:
        model: an ONNX file with CLASS_NAMES as its classes.
        plates: number of plates to run, at least 1.

    Returns:
        The measures over those plates.

    Raises:
        ModelError: the model cannot be used.
    """
    detector = OnnxYolo.load(model, SessionOptions(intra_op_threads=1))
    scenes = [_look(detector, plate) for plate in islice(camera(_HELD_OUT_CAMERA), plates)]
    ap50 = {name: average_precision(scenes, class_id) for class_id, name in enumerate(CLASS_NAMES)}
    mean = sum(ap50.values()) / len(ap50)
    return Measures(plates, round(mean, 4), {name: round(ap, 4) for name, ap in ap50.items()})


def _look(detector: OnnxYolo, plate: Plate) -> Scene:
    detections = detector.detect(plate.image, confidence=_CONFIDENCE, iou=_IOU)
    return Scene(
        plate.boxes, plate.class_ids, detections.xyxy, detections.class_id, detections.confidence
    )


if __name__ == "__main__":
    main()
