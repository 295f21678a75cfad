"""Options of ONNX Runtime sessions, and their translation into ONNX Runtime's own options.

Measured on CPUs only. The options for CUDA and TensorRT follow ONNX Runtime's documentation; the
tests cover the translation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servicekit.resources import are_limited, cpus

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Options of a session.

    Attributes:
        providers: ONNX Runtime's names, first choice first. Operators that a provider does not
            support run on the next one, in the end on the CPU. A provider that is not available is
            an error, never a silent fallback.
        intra_op_threads: threads of one run on the CPU, at least 1; None for one per core, or
            one per CPU that the process may use if these are fewer than the machine's. With 1 a run
            uses the calling thread only, which is best for several runs in parallel.
        device_id: number of the GPU, from 0.
        gpu_memory_bytes: limit of CUDA's arena, at least 1; None for no limit.
        engine_cache: folder where TensorRT stores its timings and, in a subfolder for each model,
            its engines between starts; None for no cache, which costs minutes at each start.
        tensorrt_fp16: True if TensorRT may compute in half precision, which changes results.

    Raises:
        ValueError: a number out of its range.
    """

    providers: tuple[str, ...] = (CPU,)
    intra_op_threads: int | None = None
    device_id: int = 0
    gpu_memory_bytes: int | None = None
    engine_cache: Path | None = None
    tensorrt_fp16: bool = False

    def __post_init__(self) -> None:
        minimums = (("intra_op_threads", 1), ("device_id", 0), ("gpu_memory_bytes", 1))
        for name, minimum in minimums:
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")


DEFAULT_OPTIONS = SessionOptions()


def runtime_options(options: SessionOptions) -> "onnxruntime.SessionOptions":
    """Return ONNX Runtime's own options.

    Denormal numbers are not flushed to zero: ONNX Runtime would set that permanently for the thread
    that opens the first session, including all its other computations.
    """
    import onnxruntime  # late, so that this package can be imported without it

    runtime = onnxruntime.SessionOptions()
    runtime.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    runtime.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    runtime.inter_op_num_threads = 1
    # On a CPU the memory pattern of each shape makes no run faster (YOLOv8n, one and two runs in
    # parallel) and costs a tenth to a fifth of the process's memory.
    runtime.enable_mem_pattern = options.providers[:1] != (CPU,)
    if options.intra_op_threads is not None:
        runtime.intra_op_num_threads = options.intra_op_threads
    elif are_limited():
        # By default ONNX Runtime counts the machine's cores, whatever quota the process has.
        runtime.intra_op_num_threads = cpus()
    # A spinning thread takes a core away from parallel runs.
    runtime.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime


def make_engine_folder(options: SessionOptions, sha256: str) -> None:
    """Create the folder of a model's TensorRT engines, if the options ask for one.

    ONNX Runtime names an engine by the names in the graph and not by the weights, which the engine
    contains. In one folder, another training of the same network would run on the old weights.

    Args:
        options: of the session.
        sha256: of the whole model, in hex: the folder's name.

    Raises:
        OSError: it cannot be created.
    """
    if TENSORRT in options.providers and options.engine_cache is not None:
        (options.engine_cache / sha256).mkdir(parents=True, exist_ok=True)


def provider_options(options: SessionOptions, sha256: str) -> list[dict[str, str]]:
    """Return the options of each provider, in the order of the providers.

    Args:
        options: of the session.
        sha256: of the whole model, in hex.
    """
    return [_of_provider(name, options, sha256) for name in options.providers]


def _of_provider(name: str, options: SessionOptions, sha256: str) -> dict[str, str]:
    if name == CUDA:
        return _cuda(options)
    return _tensorrt(options, sha256) if name == TENSORRT else {}


def _cuda(options: SessionOptions) -> dict[str, str]:
    cuda = {
        "device_id": str(options.device_id),
        # The default doubles the arena each time, which leaves no memory for a second model.
        "arena_extend_strategy": "kSameAsRequested",
        # Each number of rows is a separate shape; the default would try out every algorithm in
        # the first run of each, while a caller waits.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if options.gpu_memory_bytes is not None:
        cuda["gpu_mem_limit"] = str(options.gpu_memory_bytes)
    return cuda


def _tensorrt(options: SessionOptions, sha256: str) -> dict[str, str]:
    tensorrt = {
        "device_id": str(options.device_id),
        "trt_fp16_enable": str(options.tensorrt_fp16),
    }
    if options.engine_cache is not None:
        tensorrt |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(options.engine_cache / sha256),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(options.engine_cache),
        }
    return tensorrt
