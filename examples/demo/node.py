"""The edge node of the demo: a camera, a model that fails now and then, and a log."""

from pathlib import Path

from edge.backoff import full_jitter
from edge.detect import DetectorResult, Image, OnnxDetector
from examples.demo.world import MODELS, World
from sightline import EdgeNode, InferenceClient, Policy, PredictionLogger

DEVICE = "demo-camera"


class FailingDetector:
    """A detector that raises on demand, as a model on a hot device does.

    Args:
        detector: detector that answers the rest of the time.
    """

    def __init__(self, detector: OnnxDetector) -> None:
        self._detector = detector
        self.fails = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self._detector.name

    @property
    def version(self) -> str:
        """The model's version."""
        return self._detector.version

    def detect(self, image: Image) -> DetectorResult:
        """Find objects in one image.

        Raises:
            RuntimeError: `fails` is set.
        """
        if self.fails:
            raise RuntimeError("the model ran out of memory")
        return self._detector.detect(image)


def make_detector() -> FailingDetector:
    """Return the demo model on the device."""
    path = MODELS / "plates" / "1" / "model.onnx"
    return FailingDetector(OnnxDetector(path, name="plates", version="1", intra_op_threads=1))


def make_node(world: World, detector: FailingDetector, folder: Path) -> EdgeNode:
    """Return the node: device first, then the cloud, every answer logged.

    Args:
        world: the services.
        detector: the model on the device.
        folder: parent folder of the spool.
    """
    return EdgeNode(
        detector,
        InferenceClient(world.inference_relay.address),
        PredictionLogger(world.ingest_relay.address, device_id=DEVICE, spool_dir=folder / "spool"),
        policy=Policy(backoff=full_jitter(), timeout=8.0),
        defect_classes=("scratch", "pit", "stain"),
    )
