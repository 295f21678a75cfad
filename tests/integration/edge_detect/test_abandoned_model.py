"""A command ends with its own exit code while the device's model still runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "models/repository/plates/1/model.onnx"
PROGRAM = """
import atexit, sys, threading, time
import numpy as np
import onnxruntime
from edge.decide.device_worker import DeviceWorker
from servicekit import terminal

class Endless:
    name, version = "endless", "1"
    begun = threading.Event()
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])

    def detect(self, image):
        given = {self.session.get_inputs()[0].name: np.zeros((1, 3, 320, 320), np.float32)}
        while True:  # in and out of native code
            self.session.run(None, given)
            self.begun.set()

class Slow:  # an end of the interpreter that lasts until the model comes back from native code
    def __del__(self, sleep=time.sleep):
        sleep(1.0)

slow = Slow()

def command():
    atexit.register(lambda: print("at exit", flush=True))
    worker = DeviceWorker(Endless(), 1.0)
    worker.submit(b"")
    assert Endless.begun.wait(60)
    worker.close(0.01)
    print("the summary")
    raise SystemExit(7)

terminal.run(command, prog="sightline")
"""


def test_a_model_that_still_runs_does_not_abort_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(MODEL)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "the summary\nat exit\n"
    assert "terminate" not in done.stderr
