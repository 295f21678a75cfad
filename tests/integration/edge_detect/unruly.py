"""Detectors that misbehave on command: the picture's bytes say how."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import grpc

from edge.detect.base import DetectorResult, Image
from edge.records import Detection
from servicekit.errors import SightlineError, invalid
from vision import ModelError


class Unruly:
    """Counts the bytes of a picture, or breaks: `segfault`, `hang`, `exit`, `raise`, ..."""

    name = "unruly"

    def __init__(self, version: str = "1", closed: str | None = None) -> None:
        self.version = version
        self._closed = closed

    def detect(self, image: Image) -> DetectorResult:
        if isinstance(image, bytes):
            getattr(self, f"_{image.decode()}", lambda: None)()
        count = len(image) if isinstance(image, bytes) else 0
        return DetectorResult((Detection(count, "byte", 0.5),), 1, 1, self.name, self.version)

    def close(self) -> None:
        if self._closed is not None:
            Path(self._closed).write_text("closed")

    def _segfault(self) -> None:
        ctypes.string_at(0)

    def _hang(self) -> None:
        time.sleep(1e6)

    def _nap(self) -> None:
        time.sleep(0.7)

    def _orphan(self) -> None:
        """Is killed, with a helper alive that has inherited all that was open."""
        if os.fork() == 0:
            time.sleep(1e6)
        os.kill(os.getpid(), signal.SIGKILL)

    def _exit(self) -> None:
        os._exit(3)

    def _print(self) -> None:
        print("a library says hello", flush=True)  # noqa: T201 - as libraries do
        os.write(1, b"and so does its C code\n")

    def _raise(self) -> None:
        raise RuntimeError("no kernel image")

    def _refuse(self) -> None:
        raise invalid("image", "must be smaller", reason="IMAGE_TOO_LARGE")

    def _model(self) -> None:
        raise ModelError("MODEL_RUN_FAILED", "out of memory")

    def _unavailable(self) -> None:
        raise SightlineError(grpc.StatusCode.UNAVAILABLE, "GPU_LOST", "the GPU is gone")


def summing() -> "Summing":
    """A detector of arrays."""
    return Summing()


class Summing:
    """A detector that returns an array's height, width and sum."""

    name = "summing"
    version = ""

    def detect(self, image: Image) -> DetectorResult:
        total = Detection(int(image.sum() % 1_000_003), "sum", 0.5)  # type: ignore[union-attr]
        height, width = image.shape[:2]  # type: ignore[union-attr]
        return DetectorResult((total,), width, height, self.name)


class Stillborn:
    """Fails while it loads."""

    name = "stillborn"
    version = ""

    def __init__(self, how: str) -> None:
        if how == "model":
            raise ModelError("MODEL_FILE_INVALID", "plates.onnx is no model")
        if how == "module":
            import no_such_runtime  # type: ignore[import-not-found]  # noqa: F401
        if how == "segfault":
            ctypes.string_at(0)
        if how == "hang":
            time.sleep(1e6)
        if how == "exit":
            sys.exit(4)
        raise ValueError(f"bad {how}")

    def detect(self, image: Image) -> DetectorResult:
        raise AssertionError("never made")


class Once:
    """Loads once for each file `path`, which it removes, and counts the attempts beside it."""

    name = "once"
    version = ""

    def __init__(self, path: str) -> None:
        with Path(f"{path}.tries").open("a") as tries:
            tries.write("x")
        Path(path).unlink()

    def detect(self, image: Image) -> DetectorResult:
        if image == b"exit":
            os._exit(1)
        return DetectorResult((), 1, 1, self.name)
