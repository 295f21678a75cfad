"""Log the detections of an ultralytics model.

`python examples/log_ultralytics.py [MODEL [SOURCE [TARGET]]]`: SOURCE is an image, a folder, a
video or a camera's number; TARGET is the ingest service.
"""

import sys

from ultralytics import YOLO

from sightline import PredictionLogger

DEFAULTS = ("yolov8n.pt", "0", "127.0.0.1:50051")
path, source, target = (*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])

model = YOLO(path, task="detect")
with PredictionLogger(target, device_id="example") as log:
    log.attach(model)
    for _ in model.predict(source, stream=True, verbose=False):
        pass
    log.flush(timeout=10, until="committed")
    print(log.stats())
