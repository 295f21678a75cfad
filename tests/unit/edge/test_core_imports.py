"""A device that only logs needs no more than the core's few packages."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib.abc
import sys

HEAVY = {
    "numpy", "onnxruntime", "PIL", "cv2", "duckdb", "pyarrow", "torch", "torchvision",
    "ultralytics", "structlog", "prometheus_client", "grpc_health", "grpc_reflection", "yaml",
    "jwt", "cryptography",
}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is not part of the edge core")

sys.meta_path.insert(0, Blocker())

from array import array

from sightline import Box, Detection, DetectionArrays, Prediction, PredictionLogger

with PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=sys.argv[1]) as log:
    box = Box(1, 2, 3, 4)
    log(Prediction("i", "m", detections=(Detection(0, "car", 0.5, box),)), wait="spooled")
    arrays = DetectionArrays([[1, 2, 3, 4]], array("f", [0.5]), array("i", [0]), names=["car"])
    log(Prediction("i", "m", detections=arrays), wait="spooled")
    assert log.stats().spooled == 2
assert not HEAVY & {name.partition(".")[0] for name in sys.modules}
print(sorted({name.partition(".")[0] for name in sys.modules
              if name.partition(".")[0] in {"ingest_service", "inference_service"}}))
"""


def test_logging_imports_nothing_heavy(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
