"""Sessions as they are: every output, in its own type, for any number of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.unit.vision.models import save
from vision import ModelError, TensorInfo
from vision.onnx_session import OnnxSession
from vision.pinned_outputs import PinnedOutputs

KINDS = {
    "doubled": (TensorProto.FLOAT, ["rows", 2]),
    "half": (TensorProto.FLOAT16, ["rows", 2]),
    "whole": (TensorProto.INT64, ["rows", 2]),
    "small": (TensorProto.UINT8, ["rows", 2]),
    "positive": (TensorProto.BOOL, ["rows", 2]),
}


def several(path: Path, rows: int | str = "rows") -> OnnxSession:
    """Return a model with outputs of many types, all of them twice the input."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        *(
            helper.make_node("Cast", ["doubled"], [name], to=kind)
            for name, (kind, _) in KINDS.items()
            if name != "doubled"
        ),
    ]
    return load(path, nodes, [(name, kind, [rows, 2]) for name, (kind, _) in KINDS.items()], rows)


def load(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    rows: int | str = "rows",
) -> OnnxSession:
    graph = helper.make_graph(
        list(nodes),
        "several",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 2])],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
    )
    return OnnxSession.load(save(path, graph, {}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_tensors_are_described(path: Path) -> None:
    session = several(path)
    assert session.inputs == (TensorInfo("x", np.dtype(np.float32), (None, 2)),)
    assert session.outputs == (
        TensorInfo("doubled", np.dtype(np.float32), (None, 2)),
        TensorInfo("half", np.dtype(np.float16), (None, 2)),
        TensorInfo("whole", np.dtype(np.int64), (None, 2)),
        TensorInfo("small", np.dtype(np.uint8), (None, 2)),
        TensorInfo("positive", np.dtype(np.bool_), (None, 2)),
    )
    assert session.batch_size is None


@pytest.mark.parametrize("rows", ["rows", 1, 2, 8])
def test_every_output_comes_in_its_own_type(path: Path, rows: int | str) -> None:
    session = several(path, rows)
    batch = np.arange(10, dtype=np.float64).reshape(5, 2)
    results = session.run(batch)
    assert [values.dtype for values in results] == [info.dtype for info in session.outputs]
    for values in results:
        assert values.shape == (5, 2)
        assert np.array_equal(values, (batch * 2).astype(values.dtype))


def test_an_output_without_a_row_for_each_input_is_an_error(path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0)
    session = load(path, [mean], [("mean", TensorProto.FLOAT, [])])
    with pytest.raises(ModelError, match=r"mean must have one row for each of 3") as caught:
        session.run(np.zeros((3, 2), dtype=np.float32))
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_an_output_that_is_no_numbers_is_refused(path: Path) -> None:
    text = helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING)
    with pytest.raises(
        ModelError, match=r"text must be .* numbers, got tensor\(string\)"
    ) as caught:
        load(path, [text], [("text", TensorProto.STRING, ["rows", 2])])
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_a_second_input_is_refused(path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "y"], ["sum"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 2])],
    )
    with pytest.raises(ModelError, match="one input") as caught:
        OnnxSession.load(save(path, graph, {}))
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_pinned_outputs_are_the_outputs(path: Path) -> None:
    """On a CPU the same calls give ordinary memory: this shows the binding, not the pinning."""
    session = several(path)
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bound = PinnedOutputs(plain, [info.name for info in session.outputs], 0)
    batch = np.arange(6, dtype=np.float32).reshape(3, 2)
    first = bound.run({"x": batch})
    second = bound.run({"x": batch + 1})  # must not write over what the first run gave
    for results, expected in zip(first, session.run(batch), strict=True):
        assert results.dtype == expected.dtype
        assert np.array_equal(results, expected)
    assert np.array_equal(second[0], (batch + 1) * 2)
    assert bound._pinned


def test_where_the_binding_fails_the_session_runs_as_usual(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = several(path)
    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bound = PinnedOutputs(plain, [info.name for info in session.outputs], 0)
    monkeypatch.setattr(plain, "io_binding", lambda: object())  # as of another ONNX Runtime
    batch = np.arange(6, dtype=np.float32).reshape(3, 2)
    for _ in range(2):
        for results, expected in zip(bound.run({"x": batch}), session.run(batch), strict=True):
            assert np.array_equal(results, expected)
    assert caplog.text.count("pinned outputs failed") == 1
    with pytest.raises(ValueError, match="missing"):  # what is wrong with the run itself is raised
        bound.run({"y": batch})
