"""A logging camera with the cloud behind it: `python examples/edge_node.py pictures/`.

Every JPEG of the folder is answered by the model on this device, or by the inference service if
that fails or is late, and logged to the ingest service. What cannot be sent yet waits on the disk.
The model, the services and the rest are named by `SIGHTLINE_EDGE_*` variables or `sightline.toml`:

    SIGHTLINE_EDGE_DEVICE_MODEL=models/repository/plates/1/model.onnx
    SIGHTLINE_EDGE_INFERENCE_TARGET=127.0.0.1:50052
    SIGHTLINE_EDGE_INGEST_TARGET=127.0.0.1:50051
"""

import sys
from pathlib import Path

from servicekit.errors import SightlineError
from sightline import EdgeNode

with EdgeNode.from_settings() as node:
    for image in sorted(Path(sys.argv[1]).glob("*.jpg")):
        try:
            answer = node.process(image, image_id=image.name, labels={"line": "3"})
        except SightlineError as error:
            print(f"{image.name}: {error}", file=sys.stderr)
            continue
        names = ", ".join(detection.class_name for detection in answer.detections) or "nothing"
        print(f"{image.name}: {names} ({answer.source}, {answer.total_milliseconds:.0f} ms)")
    committed = node.logger.flush(10, until="committed")
    print("all committed" if committed else "the rest is spooled and sent next time")
