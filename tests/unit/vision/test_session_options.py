"""Translation of session options, and the options that are left at their defaults."""

import subprocess
import sys
from pathlib import Path

import pytest

from vision import ModelError, OnnxSession, SessionOptions
from vision.model_identity import model_sha256
from vision.session_options import (
    CPU,
    CUDA,
    TENSORRT,
    provider_options,
    runtime_options,
)

ROOT = Path(__file__).parents[3]
SHA = "ab" * 32
PLATES = ROOT / "models" / "repository" / "plates" / "1" / "model.onnx"


def test_runs_are_sequential_and_nobody_spins() -> None:
    translated = runtime_options(SessionOptions(intra_op_threads=3))
    assert (translated.intra_op_num_threads, translated.inter_op_num_threads) == (3, 1)
    assert translated.execution_mode.name == "ORT_SEQUENTIAL"
    assert translated.graph_optimization_level.name == "ORT_ENABLE_ALL"
    assert translated.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert runtime_options(SessionOptions()).intra_op_num_threads == 0  # ONNX Runtime's choice


@pytest.mark.parametrize(("providers", "planned"), [((CPU,), False), ((CUDA, CPU), True)])
def test_memory_is_planned_on_gpus_only(providers: tuple[str, ...], planned: bool) -> None:
    assert runtime_options(SessionOptions(providers)).enable_mem_pattern is planned


def test_the_cpu_needs_no_options() -> None:
    assert provider_options(SessionOptions(), SHA) == [{}]


def test_options_are_in_the_order_of_the_providers() -> None:
    options = SessionOptions(
        (TENSORRT, CUDA, CPU),
        device_id=2,
        gpu_memory_bytes=2**32,
        engine_cache=Path("cache"),
        tensorrt_fp16=True,
    )
    assert provider_options(options, SHA) == [
        {
            "device_id": "2",
            "trt_fp16_enable": "True",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": f"cache/{SHA}",
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": "cache",
        },
        {
            "device_id": "2",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "gpu_mem_limit": str(2**32),
        },
        {},
    ]


def test_without_a_folder_tensorrt_caches_nothing_and_computes_in_single_precision() -> None:
    (tensorrt,) = provider_options(SessionOptions((TENSORRT,)), SHA)
    assert tensorrt == {"device_id": "0", "trt_fp16_enable": "False"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("intra_op_threads", 0), ("device_id", -1), ("gpu_memory_bytes", 0)],
)
def test_numbers_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        SessionOptions(**{name: value})  # type: ignore[arg-type]


def test_a_session_leaves_the_threads_arithmetic_alone() -> None:
    program = """
import sys
from vision import OnnxYolo
OnnxYolo.load(sys.argv[1]).warm_up()
print(5e-324 * float(len(sys.argv) - 1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(PLATES)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "5e-324", done.stderr


@pytest.mark.parametrize("start", ["", "deeper"])
def test_each_model_has_a_folder_of_its_own_for_its_engines(tmp_path: Path, start: str) -> None:
    """The session asks for it, whether or not there is a GPU that builds engines."""
    options = SessionOptions((TENSORRT,), engine_cache=tmp_path / start)
    try:
        sha256 = OnnxSession.load(PLATES, options).sha256
    except ModelError:  # no GPU
        sha256 = model_sha256(PLATES)
    assert (tmp_path / start / sha256).is_dir()
    (tensorrt,) = provider_options(options, sha256)
    assert tensorrt["trt_engine_cache_path"] == str(tmp_path / start / sha256)


def test_a_folder_for_engines_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    options = SessionOptions((TENSORRT,), engine_cache=tmp_path / "file")
    with pytest.raises(ModelError, match=r"engine_cache: .*file must be a folder that can be writ"):
        OnnxSession.load(PLATES, options)


def test_without_tensorrt_no_folder_is_made(tmp_path: Path) -> None:
    OnnxSession.load(PLATES, SessionOptions((CPU,), engine_cache=tmp_path / "cache"))
    assert list(tmp_path.iterdir()) == []
