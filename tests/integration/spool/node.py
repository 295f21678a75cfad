"""A node whose server is away: `node.py SPOOL_DIR`. Says how many predictions are spooled."""

import sys
import time

from sightline import Box, Detection, Prediction, PredictionLogger


def main() -> None:
    log = PredictionLogger("127.0.0.1:1", device_id="gate-1", spool_dir=sys.argv[1])
    number = 0
    while True:
        for _ in range(10):
            found = Detection(0, "scratch", 0.75, Box(1.0, 2.0, 3.0, 4.0))
            log(Prediction(f"part-{number}.jpg", "plates", detections=(found,)))
            number += 1
        assert log.flush(60)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        time.sleep(0.05)


main()
