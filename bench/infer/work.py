"""The measured work: from an encoded image to its detections, as the service does it."""

from pathlib import Path

from sightline.inference.v1 import inference_pb2, inference_service_pb2
from sightline.types.v1 import prediction_pb2

from inference_service.models import model_spec
from vision import Detections, OnnxYolo, SessionOptions, decode_image
from vision.session_options import CPU

THREADS = 1
"""CPU threads of one run of the model, in every server: two runs at a time fill two cores."""


class InferenceWork:
    """A loaded detector with the thresholds of its `model.yaml`. Safe in threads.

    Args:
        model: `model.onnx`, beside its `model.yaml` if it has one.
        providers: ONNX Runtime's, first choice first.

    Raises:
        ModelError: the file or a provider cannot be used.
    """

    def __init__(self, model: Path, providers: tuple[str, ...] = (CPU,)) -> None:
        options = SessionOptions(providers=providers, intra_op_threads=THREADS)
        self._detector = OnnxYolo.load(model, options)
        self._thresholds = model_spec.read(model.with_name("model.yaml")).thresholds
        self._detector.warm_up()

    def __call__(self, image: bytes) -> Detections:
        """Return the detections in an encoded image."""
        return self._detector.detect(
            decode_image(image),
            confidence=self._thresholds.confidence,
            iou=self._thresholds.iou,
            max_detections=self._thresholds.max_detections,
        )

    def rows(self, image: bytes) -> list[tuple[int, str, float, list[float]]]:
        """Return class id, label, confidence and corners of each object in an image."""
        detections = self(image)
        names = self._detector.names
        columns = (
            detections.class_id.tolist(),
            detections.confidence.tolist(),
            detections.xyxy.tolist(),
        )
        return [
            (number, names[number], sure, box) for number, sure, box in zip(*columns, strict=True)
        ]


def response(work: InferenceWork, image: bytes) -> inference_service_pb2.InferResponse:
    """Return the detections in an image as an `InferResponse`."""
    detections = [
        prediction_pb2.Detection(
            class_id=number,
            class_name=name,
            confidence=sure,
            box=prediction_pb2.BoundingBox(x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3]),
        )
        for number, name, sure, box in work.rows(image)
    ]
    return inference_service_pb2.InferResponse(
        results=[inference_pb2.ImageResult(detections=detections)]
    )
