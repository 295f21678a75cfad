"""A node that logs until it is killed: `node.py TARGET SPOOL_DIR NAME LEDGER`.

Writes to the file LEDGER how many of its predictions are spooled for certain.
"""

import os
import sys
import time

from edge import Box, Detection, LogOptions, Prediction, PredictionLogger


def main() -> None:
    target, folder, name, ledger = sys.argv[1:]
    log = PredictionLogger(
        target,
        device_id="gate-1",
        spool_dir=folder,
        options=LogOptions(batch_timeout_seconds=0.05, stream_size=100),
    )
    descriptor = os.open(ledger, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    number = 0
    while True:
        for _ in range(20):
            found = Detection(number % 80, "thing", 0.5, Box(0.0, 1.0, 2.0, 3.0))
            log(Prediction(f"{name}/{number}", "m", detections=(found,)))
            number += 1
        assert log.flush(60)
        os.write(descriptor, b"%d\n" % number)
        time.sleep(0.005)


main()
