"""`python -m inference_service` in which runs and loading take as long as a test wants.

A run waits for as long as the model's metadata says (`tiny_onnx.colour_model(wait_seconds=...)`),
inside ONNX Runtime's session: the worker is busy, the processor is not. All else is the service's
own, and a model whose metadata says nothing runs as it is.

A version in whose folder a pipe named `HOLD` lies is loaded once somebody has written to the pipe.
"""

import importlib
import runpy
import time
from pathlib import Path
from typing import Any

MODULE = "tests.integration.inference.waiting_service"
"""Module that starts it, after `python -m`."""
WAIT_SECONDS = "test_wait_seconds"
"""Key in a model's metadata."""
HOLD = ".hold"
"""Name of the pipe."""


def _make_runs_wait() -> None:
    importlib.import_module("vision")  # first: it says how onnxruntime is imported
    from onnxruntime import InferenceSession

    run = InferenceSession.run

    def waiting_run(session: InferenceSession, *arguments: Any, **keywords: Any) -> Any:
        outputs = run(session, *arguments, **keywords)
        time.sleep(float(session.get_modelmeta().custom_metadata_map.get(WAIT_SECONDS, 0.0)))
        return outputs

    InferenceSession.run = waiting_run


def _make_loading_wait() -> None:
    loader = importlib.import_module("inference_service.models.loader")
    read = loader.read

    def waiting_read(path: Path) -> Any:
        hold = path.with_name(HOLD)
        if hold.exists():
            hold.read_bytes()
        return read(path)

    loader.read = waiting_read  # type: ignore[attr-defined]


if __name__ == "__main__":
    _make_runs_wait()
    _make_loading_wait()
    runpy.run_module("inference_service", run_name="__main__", alter_sys=True)
