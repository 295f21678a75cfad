"""ONNX Runtime sessions, opened with exactly the requested execution providers."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from servicekit.memory import is_to_blame
from vision.errors import ModelError, unreadable
from vision.external_data import load_external_data, sha256_of
from vision.model_files import read_onnx, refused_onnx
from vision.pinned_outputs import PinnedOutputs
from vision.session_options import (
    CUDA,
    DEFAULT_OPTIONS,
    TENSORRT,
    SessionOptions,
    make_engine_folder,
    provider_options,
    runtime_options,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg
    from onnxruntime import SessionOptions as RuntimeOptions

logger = logging.getLogger(__name__)

# ONNX Runtime's builds send telemetry unless this is set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_NVIDIA = {CUDA, TENSORRT}
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
_INPUTS = ("tensor(float)", "tensor(float16)")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or an output of a model.

    Attributes:
        name: name in the file.
        dtype: type of the elements.
        shape: sizes of the axes, the batch first; None for an axis of any or of unknown size.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


class OnnxSession:
    """A loaded model with one floating-point input. Thread-safe.

    Attributes:
        sha256: of the model file and its external data, in hex; see `external_data.sha256_of`.
        providers: execution providers of the session, first choice first.
        metadata: the string map that the exporter wrote.
        inputs: exactly one.
        outputs: at least one, in the order of `run`.
        batch_size: rows of every run of the model; None if it accepts any number.
    """

    def __init__(self, session: "InferenceSession", sha256: str, device_id: int = 0) -> None:
        """Wrap an ONNX Runtime session; `load` is the usual way.

        Args:
            session: of a model with one input.
            sha256: of the model file and its external data, in hex.
            device_id: number of the GPU, if it runs on one.

        Raises:
            ModelError: ``MODEL_UNSUPPORTED``: an unsupported input or output.
        """
        self.inputs = (_only_input(session),)
        self.outputs = tuple(_describe(node) for node in session.get_outputs())
        self.sha256 = sha256
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.metadata: Mapping[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.batch_size = self.inputs[0].shape[0] if self.inputs[0].shape else None
        names = [output.name for output in self.outputs]
        self._run_feed: Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]
        if self.providers[0] in _NVIDIA:
            self._run_feed = PinnedOutputs(session, names, device_id).run
        else:
            self._run_feed = partial(session.run, names)

    @classmethod
    def load(cls, path: Path, options: SessionOptions = DEFAULT_OPTIONS) -> "OnnxSession":
        """Open a model file.

        Args:
            path: an ``.onnx`` file.
            options: of the session.

        Raises:
            ModelError: ``MODEL_FILE_MISSING``, ``MODEL_FILE_INVALID``, ``MODEL_UNSUPPORTED`` or
                ``MODEL_PROVIDER_UNAVAILABLE``.
        """
        content = read_onnx(path)
        chosen = runtime_options(options)
        try:
            weights = load_external_data(path, content, chosen)
        except OSError as error:
            raise unreadable(path, error) from error
        digests = {name: hashlib.sha256(part).digest() for name, part in weights.items()}
        digest = sha256_of(hashlib.sha256(content).digest(), digests)
        session = _open(path, content, digest, options, chosen)
        del weights  # only now does ONNX Runtime have its own copy
        _check_providers(options.providers, session.get_providers())
        return cls(session, digest, options.device_id)

    def run(self, batch: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Run a batch ``[N, ...]``, N >= 1, and return every output ``[N, ...]`` in its own type.

        The batch is converted to the input's type. A model with a fixed batch size is run as often
        as needed; the last batch is padded.

        Raises:
            ValueError: the batch does not have the shape of the input.
            ModelError: ``MODEL_RUN_FAILED``: the runtime or its device failed;
                ``MODEL_UNSUPPORTED``: an output does not have one row per row of the batch.
            MemoryError: there is not enough memory, on the host or on the device.
        """
        self._check_shape(batch)
        size = self.batch_size or len(batch)
        parts = [self._run(batch[at : at + size], size) for at in range(0, len(batch), size)]
        if len(parts) == 1:
            return parts[0]
        return tuple(np.concatenate(output) for output in zip(*parts, strict=True))

    def _run(self, rows: NDArray[Any], size: int) -> tuple[NDArray[Any], ...]:
        padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
        padded = np.pad(rows, padding) if len(rows) < size else rows
        (model_input,) = self.inputs
        feed = {model_input.name: np.ascontiguousarray(padded, dtype=model_input.dtype)}
        try:
            results = self._run_feed(feed)
        except Exception as error:  # the only common base class of ONNX Runtime's errors
            if is_to_blame(error):
                raise MemoryError(f"not enough memory for a run: {error}") from error
            raise ModelError("MODEL_RUN_FAILED", f"the model's run failed: {error}") from error
        for output, values in zip(self.outputs, results, strict=True):
            _check_rows(output, values, size)
        return tuple(values[: len(rows)] for values in results)

    def _check_shape(self, batch: NDArray[Any]) -> None:
        expected = self.inputs[0].shape
        fits = batch.ndim == len(expected) and len(batch) > 0
        if not fits or any(
            want not in (None, have)
            for want, have in zip(expected[1:], batch.shape[1:], strict=True)
        ):
            raise ValueError(f"batch must be [N, *{list(expected[1:])}], got {list(batch.shape)}")


def _open(
    path: Path, content: bytes, sha256: str, options: SessionOptions, chosen: "RuntimeOptions"
) -> "InferenceSession":
    import onnxruntime  # late, so that this package can be imported without it

    _check_providers(options.providers, onnxruntime.get_available_providers())
    if _NVIDIA & set(options.providers):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their Python packages, if installed
    _make_engine_folder(options, sha256)
    try:
        # From the bytes that were hashed: the file may be replaced meanwhile. Without the flag, a
        # failing provider is silently replaced by the CPU, now or in a run.
        session = onnxruntime.InferenceSession(
            content,
            chosen,
            providers=list(options.providers),
            provider_options=provider_options(options, sha256),
            enable_fallback=False,
        )
    except Exception as error:  # the only common base class of ONNX Runtime's errors
        raise _cannot_load(path, content, options.providers, error) from error
    session._model_bytes = None  # noqa: SLF001 - else it keeps them; only a fallback needs them
    return session


def _make_engine_folder(options: SessionOptions, sha256: str) -> None:
    try:
        make_engine_folder(options, sha256)
    except OSError as error:
        raise ModelError(
            "MODEL_PROVIDER_UNAVAILABLE",
            f"engine_cache: {options.engine_cache} must be a folder that can be written to:"
            f" {error.strerror}",
        ) from error


def _cannot_load(
    path: Path, content: bytes, providers: Sequence[str], error: Exception
) -> ModelError:
    # Provider failures raise built-in exceptions, file failures ONNX Runtime's own.
    if isinstance(error, RuntimeError | ValueError):
        text = f"providers {list(providers)} cannot run {path}: {error}"
        return ModelError("MODEL_PROVIDER_UNAVAILABLE", text)
    return refused_onnx(path, content, error)


def _check_providers(requested: Sequence[str], available: Sequence[str]) -> None:
    if not requested or not set(requested) <= set(available):
        raise ModelError(
            "MODEL_PROVIDER_UNAVAILABLE",
            f"providers must be some of {list(available)}, got {list(requested)}",
        )


def _only_input(session: "InferenceSession") -> TensorInfo:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _INPUTS:
        types = ", ".join(f"{node.name}: {node.type}" for node in inputs)
        raise ModelError(
            "MODEL_UNSUPPORTED", f"the model must have one input of {list(_INPUTS)}, got {types}"
        )
    return _describe(inputs[0])


def _describe(node: "NodeArg") -> TensorInfo:
    if node.type not in _DTYPES:
        raise ModelError(
            "MODEL_UNSUPPORTED", f"{node.name} must be a tensor of numbers, got {node.type}"
        )
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return TensorInfo(node.name, np.dtype(_DTYPES[node.type]), shape)


def _check_rows(output: TensorInfo, values: NDArray[Any], size: int) -> None:
    if values.ndim == 0 or len(values) != size:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"output {output.name} must have one row for each of {size} inputs, got "
            f"{list(values.shape)}",
        )
