"""Metadata and configuration of a model."""

from pathlib import Path

from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.repository import Models
from inference_service.open_inference import describe
from tests.unit.inference_service.open_inference.networks import loaded, network

Tensor = oip.ModelMetadataResponse.TensorMetadata


def test_metadata(tmp_path: Path) -> None:
    model = loaded(network(tmp_path / "model.onnx"))
    described = describe.metadata(model, Models([model], "two"))
    assert (described.name, list(described.versions), described.platform) == (
        "two",
        ["1"],
        "onnx_onnxv1",
    )
    assert list(described.inputs) == [Tensor(name="images", datatype="FP32", shape=[-1, 3, 16, 16])]
    assert list(described.outputs) == [
        Tensor(name="scores", datatype="FP32", shape=[-1, 5]),
        Tensor(name="best", datatype="INT64", shape=[-1, 1]),
    ]


def test_a_model_of_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path) -> None:
    model = loaded(network(tmp_path / "model.onnx", batch=1, half=True))
    described = describe.metadata(model, Models([model], "two"))
    assert list(described.inputs) == [Tensor(name="images", datatype="FP16", shape=[-1, 3, 16, 16])]


def test_the_configuration_of_a_model_that_is_run_singly(tmp_path: Path) -> None:
    model = loaded(network(tmp_path / "model.onnx"))
    assert describe.config(model, max_rows=4) == oip.ModelConfig(
        name="two",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=4,
        input=[oip.ModelInput(name="images", data_type=oip.TYPE_FP32, dims=[3, 16, 16])],
        output=[
            oip.ModelOutput(name="scores", data_type=oip.TYPE_FP32, dims=[5]),
            oip.ModelOutput(name="best", data_type=oip.TYPE_INT64, dims=[1]),
        ],
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )


def test_the_configuration_of_a_model_that_is_batched(tmp_path: Path) -> None:
    model = loaded(network(tmp_path / "model.onnx"), max_rows=8, max_wait=0.0025)
    config = describe.config(model, max_rows=4)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching == oip.ModelDynamicBatching(
        preferred_batch_size=[8], max_queue_delay_microseconds=2500
    )
