"""How ONNX Runtime runs a model: the few options that matter, and their translation into its own.

Measured on CPUs only. What is said of CUDA and TensorRT follows ONNX Runtime's documentation and
was tested as far as the options that are handed over.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a session is opened with.

    Attributes:
        providers: ONNX Runtime's names, first choice first. Operators that one of them lacks run on
            the next, in the end on the CPU; a provider that is missing as a whole is an error,
            never a silent fall-back.
        intra_op_threads: threads of one run on the CPU, at least 1; None for one per core. With 1 a
            run stays on the thread that calls it: best where several runs go on at once.
        device_id: number of the GPU, from 0.
        gpu_memory_bytes: what CUDA's arena may take, above 0; None for as much as there is.
        engine_cache: folder where TensorRT keeps its engines and timings between starts; None for
            no cache, and minutes of building at each start.
        tensorrt_fp16: whether TensorRT may compute in half precision, which changes results.

    Raises:
        ValueError: a number out of its range, which it names.
    """

    providers: tuple[str, ...] = (CPU,)
    intra_op_threads: int | None = None
    device_id: int = 0
    gpu_memory_bytes: int | None = None
    engine_cache: Path | None = None
    tensorrt_fp16: bool = False

    def __post_init__(self) -> None:
        least = (("intra_op_threads", 1), ("device_id", 0), ("gpu_memory_bytes", 1))
        for name, bound in least:
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, is {value}")


DEFAULT_OPTIONS = SessionOptions()


def runtime_options(options: SessionOptions) -> "onnxruntime.SessionOptions":
    """Make ONNX Runtime's own options.

    Denormal numbers are not flushed to zero: ONNX Runtime would set that for good, and for the
    thread that opens the first session, whatever else it computes.
    """
    import onnxruntime  # here, so that a device without it can still import this package

    made = onnxruntime.SessionOptions()
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    made.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    made.inter_op_num_threads = 1
    # On a CPU a plan of the memory of each shape makes no run faster (YOLOv8n, one and two at a
    # time), and costs a tenth to a fifth of the process's memory.
    made.enable_mem_pattern = options.providers[:1] != (CPU,)
    if options.intra_op_threads is not None:
        made.intra_op_num_threads = options.intra_op_threads
    # A thread that spins for its next task keeps a core from the runs beside it.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


def provider_options(options: SessionOptions) -> list[dict[str, str]]:
    """Make the options of each provider, in the order of the providers."""
    return [_of_provider(name, options) for name in options.providers]


def _of_provider(name: str, options: SessionOptions) -> dict[str, str]:
    if name == CUDA:
        return _cuda(options)
    return _tensorrt(options) if name == TENSORRT else {}


def _cuda(options: SessionOptions) -> dict[str, str]:
    made = {
        "device_id": str(options.device_id),
        # The default doubles what it takes each time, which leaves no room for a second model.
        "arena_extend_strategy": "kSameAsRequested",
        # Each number of rows is a shape of its own; the default would try out every algorithm in
        # the first run of each, in front of a caller.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if options.gpu_memory_bytes is not None:
        made["gpu_mem_limit"] = str(options.gpu_memory_bytes)
    return made


def _tensorrt(options: SessionOptions) -> dict[str, str]:
    made = {
        "device_id": str(options.device_id),
        "trt_fp16_enable": str(options.tensorrt_fp16),
    }
    if options.engine_cache is not None:
        folder = str(options.engine_cache)
        made |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": folder,
        }
    return made
