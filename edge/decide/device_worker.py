"""The thread that runs the device's model, so that a caller can stop waiting for it."""

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc

from edge.decide.run_times import RunTimes
from edge.detect.base import Detector, DetectorResult, Image
from edge.errors import CoordinatorClosedError
from servicekit.abandoned_threads import abandon
from servicekit.errors import SightlineError


@dataclass(slots=True)
class _Job:
    """One image for the model."""

    image: Image
    submitted: float
    future: "Future[DetectorResult]" = field(default_factory=Future)


class DeviceWorker:
    """A daemon thread that runs one detector on one image at a time.

    It runs one image at a time because parallel runs of one model compete for the same cores. It is
    a daemon thread because a model that hangs must not prevent the process from ending, as a thread
    of `concurrent.futures` would.

    Args:
        detector: the model, which is called from this thread only.
        hang_seconds: duration after which a run counts as hanging, > 0.

    Attributes:
        run_times: durations from the submission of an image to the model's answer.
    """

    def __init__(self, detector: Detector, hang_seconds: float) -> None:
        self._detector = detector
        self._hang_seconds = hang_seconds
        self.run_times = RunTimes()
        self._running_since: float | None = None
        self._closed = False
        self._closing = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sightline-device", daemon=True)
        self._thread.start()

    def submit(self, image: Image) -> "Future[DetectorResult]":
        """Return the future result, which can be cancelled until the model starts on the image.

        While the model hangs, the future fails immediately with the reason `DEVICE_HUNG`.
        """
        job = _Job(image, time.monotonic())
        busy = self._busy_seconds()
        if busy > self._hang_seconds:
            job.future.set_exception(
                SightlineError(
                    grpc.StatusCode.INTERNAL,
                    "DEVICE_HUNG",
                    f"the device's model has been running on one image for {busy:.1f} s",
                )
            )
            return job.future
        with self._closing:
            if self._closed:
                job.future.set_exception(CoordinatorClosedError())
            else:
                self._jobs.put(job)
        return job.future

    @property
    def hangs(self) -> bool:
        """True if the current run of the model has exceeded `hang_seconds`."""
        return self._busy_seconds() > self._hang_seconds

    def close(self, timeout: float = 1.0) -> None:
        """Accept no more images, and wait for the current one for at most `timeout` seconds.

        Images in the queue fail with `CoordinatorClosedError`.
        """
        with self._closing:
            self._closed = True
            self._jobs.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            abandon(self._thread)

    def _busy_seconds(self) -> float:
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._closed:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(CoordinatorClosedError())
            elif job.future.set_running_or_notify_cancel():
                self._running_since = time.monotonic()
                self._detect(job)
            del job  # else the image stays in memory until the next one comes

    def _detect(self, job: _Job) -> None:
        try:
            result = self._detector.detect(job.image)
        except BaseException as error:  # noqa: BLE001 - the future carries every failure
            self._running_since = None
            job.future.set_exception(error)
        else:
            self._running_since = None
            self.run_times.add(time.monotonic() - job.submitted)
            job.future.set_result(result)
