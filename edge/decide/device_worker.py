"""Runs the device's model in a thread of its own, so that whoever waits can stop waiting."""

import queue
import threading
from concurrent.futures import Future

from edge.detect.base import Detector, DetectorResult, Image


class DeviceWorker:
    """One detector, one picture at a time, in a daemon thread.

    One at a time, because parallel runs of one model only fight for the same cores. A daemon,
    because a model that hangs must not keep the process from ending (concurrent.futures' own
    threads would).

    Args:
        detector: the model; called from the worker's thread only.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._jobs: queue.SimpleQueue[tuple[Future[DetectorResult], Image] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sightline-device", daemon=True)
        self._thread.start()

    def submit(self, image: Image) -> "Future[DetectorResult]":
        """Returns the future result; cancelling it works until the model starts on the picture."""
        future: Future[DetectorResult] = Future()
        self._jobs.put((future, image))
        return future

    def close(self, timeout: float = 1.0) -> None:
        """Takes no more pictures; waits for the one under way, at most `timeout` seconds."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, image = job
            if future.set_running_or_notify_cancel():
                self._detect(future, image)
            del job, future, image  # or the last picture would stay in memory until the next

    def _detect(self, future: "Future[DetectorResult]", image: Image) -> None:
        try:
            result = self._detector.detect(image)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            future.set_exception(error)
        else:
            future.set_result(result)
