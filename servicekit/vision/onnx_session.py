"""One ONNX Runtime session: opened on the providers that were asked for or not at all."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from servicekit.vision.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

logger = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
_NVIDIA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxSession:
    """A loaded model with one input, used by its first output. Safe in threads.

    Attributes:
        sha256: of the model file, in hex.
        providers: execution providers that the session has, first choice first.
        metadata: the string map that the exporter wrote.
        input_shape: None where an axis takes any size.
        output_shape: None where the file does not say.
        batch_size: rows of every run of the model, or None when it takes any number.
    """

    def __init__(self, session: "InferenceSession", sha256: str) -> None:
        self._session = session
        self._input = _only_input(session)
        self._output = session.get_outputs()[0]
        self._dtype = _DTYPES[self._input.type]
        self.sha256 = sha256
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.input_shape = _known(self._input)
        self.output_shape = _known(self._output)
        self.batch_size = self.input_shape[0] if self.input_shape else None

    @classmethod
    def load(
        cls, path: Path, providers: Sequence[str] = (CPU,), intra_op_threads: int | None = None
    ) -> "OnnxSession":
        """Open a model file.

        Args:
            path: an ``.onnx`` file.
            providers: ONNX Runtime's names, first choice first. Operators that one of them lacks
                run on the next, in the end on the CPU; a provider that is missing as a whole is an
                error, never a silent fall-back.
            intra_op_threads: threads of one run on the CPU; None for ONNX Runtime's choice.

        Raises:
            ModelError: ``MODEL_FILE_MISSING``, ``MODEL_FILE_INVALID``, ``MODEL_UNSUPPORTED`` or
                ``MODEL_PROVIDER_UNAVAILABLE``.
        """
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ModelError("MODEL_FILE_MISSING", f"cannot read {path}: {error}") from error
        session = _open(path, providers, intra_op_threads)
        _check_providers(providers, session.get_providers())
        return cls(session, digest)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run ``[N, ...]``, N at least 1, to the first output ``[N, ...]``.

        A model with a fixed batch size is run as often as needed, the last time filled up.

        Raises:
            ValueError: the batch does not have the shape of the input.
            ModelError: ``MODEL_RUN_FAILED``: the runtime or its device failed.
        """
        self._check_shape(batch)
        size = self.batch_size or len(batch)
        parts = [self._run(batch[at : at + size], size) for at in range(0, len(batch), size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, rows: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        missing = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        full = np.pad(rows, missing) if len(rows) < size else rows
        feed = {self._input.name: np.ascontiguousarray(full, dtype=self._dtype)}
        try:
            (output,) = self._session.run([self._output.name], feed)
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise ModelError("MODEL_RUN_FAILED", f"the model's run failed: {error}") from error
        return np.asarray(output[: len(rows)], dtype=np.float32)

    def _check_shape(self, batch: NDArray[np.float32]) -> None:
        expected = self.input_shape[1:]
        fits = batch.ndim == len(self.input_shape) and len(batch) > 0
        if not fits or any(
            want not in (None, have) for want, have in zip(expected, batch.shape[1:], strict=True)
        ):
            raise ValueError(f"batch must be [N, *{list(expected)}], is {list(batch.shape)}")


def _open(path: Path, providers: Sequence[str], intra_op_threads: int | None) -> "InferenceSession":
    import onnxruntime  # here, so that a device without it can still import this package

    _check_providers(providers, onnxruntime.get_available_providers())
    if _NVIDIA & set(providers):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their Python packages, where installed
    options = onnxruntime.SessionOptions()
    if intra_op_threads is not None:
        options.intra_op_num_threads = intra_op_threads
    try:
        # Without the flag a provider that fails, now or in a later run, silently becomes the CPU.
        return onnxruntime.InferenceSession(
            path, options, providers=list(providers), enable_fallback=False
        )
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        raise _cannot_load(path, providers, error) from error


def _cannot_load(path: Path, providers: Sequence[str], error: Exception) -> ModelError:
    # Providers fail with the built-in types, files with ONNX Runtime's own.
    if isinstance(error, RuntimeError | ValueError):
        text = f"providers {list(providers)} cannot run {path}: {error}"
        return ModelError("MODEL_PROVIDER_UNAVAILABLE", text)
    return ModelError("MODEL_FILE_INVALID", f"{path} is no model that can be loaded: {error}")


def _check_providers(asked: Sequence[str], present: Sequence[str]) -> None:
    if not asked or not set(asked) <= set(present):
        raise ModelError(
            "MODEL_PROVIDER_UNAVAILABLE",
            f"providers {list(asked)} were asked for, there are {list(present)}",
        )


def _only_input(session: "InferenceSession") -> "NodeArg":
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _DTYPES:
        found = ", ".join(f"{each.name}: {each.type}" for each in inputs)
        raise ModelError(
            "MODEL_UNSUPPORTED", f"the model must have one input of {list(_DTYPES)}, has {found}"
        )
    return inputs[0]


def _known(node: "NodeArg") -> tuple[int | None, ...]:
    return tuple(axis if isinstance(axis, int) else None for axis in node.shape)
