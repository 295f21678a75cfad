"""Log the detections of an ultralytics model.

`python examples/log_ultralytics.py [MODEL [SOURCE [TARGET]]]`: SOURCE is an image, a folder, a
video or a camera's number; TARGET is the ingest service.
"""

import sys
from pathlib import Path

from ultralytics import YOLO

from sightline import PredictionLogger, from_ultralytics

DEFAULTS = ("yolov8n.pt", "0", "127.0.0.1:50051")
model, source, target = (*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])

with PredictionLogger(target, device_id="example") as log:
    for results in YOLO(model, task="detect").predict(source, stream=True, verbose=False):
        log(from_ultralytics(results, model_name=Path(model).stem))
    log.flush(timeout=10, until="committed")
    print(log.stats())
