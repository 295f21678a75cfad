"""A node that forks: `forking_node.py TARGET SPOOL_DIR CASE CHILDREN PREDICTIONS`.

Parent and children log under their own names; what they have logged is printed as JSON.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from sightline import LogOptions, Prediction, PredictionLogger


def main() -> None:
    target, folder, case, children, predictions = sys.argv[1:]
    log = PredictionLogger(
        target,
        device_id="gate-1",
        spool_dir=folder,
        options=LogOptions(batch_timeout_seconds=0.02),
    )
    stop = threading.Event()
    logged: list[str] = []
    busy = threading.Thread(target=keep_logging, args=(log, stop, logged))
    busy.start()
    pids = []
    for child in range(int(children)):
        time.sleep(0.03)  # forks meet streams that are under way
        pid = os.fork()
        if pid == 0:
            run_child(log, case, f"child{child}", int(predictions), Path(folder))
        pids.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    stop.set()
    busy.join()
    said: dict[str, object] = {"codes": codes, "logged": logged}
    if case == "flush":
        begun = time.monotonic()
        said["flushed"] = log.flush(60, until="committed")
        said["seconds"] = time.monotonic() - begun
        said["left"] = len(list(Path(folder).glob("forks/*/spool.db")))
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    if case in ("orphans", "os_exit"):
        while list(Path(folder).glob("forks/*/spool.db")):
            time.sleep(0.05)
    log.flush(30, until="committed")
    log.close()


def keep_logging(log: PredictionLogger, stop: threading.Event, logged: list[str]) -> None:
    while not stop.is_set():
        logged.append(f"parent/{len(logged)}")
        log(Prediction(logged[-1], "m"))
        time.sleep(0.002)


def run_child(log: PredictionLogger, case: str, name: str, predictions: int, folder: Path) -> None:
    """Never returns."""
    code = 1
    try:
        if case != "silent":
            for number in range(predictions):
                log(Prediction(f"{name}/{number}", "m"))
            until_spooled = case in ("orphans", "flush", "os_exit")
            assert log.flush(30, until="spooled" if until_spooled else "committed")
            assert log.stats().logged == predictions
        if case in ("orphans", "flush"):
            os.kill(os.getpid(), 9)
        if case == "os_exit":  # which skips all that Python does at the end
            for number in range(predictions):
                log(Prediction(f"{name}/late/{number}", "m"))
            os._exit(0)
        if case == "exit":
            sys.exit(0)  # with everything that Python does at the end
        assert log.close(10)
        code = 0
    finally:
        if case != "exit":
            os._exit(code)


main()
