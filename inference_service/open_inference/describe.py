"""Metadata and configuration messages about the server and its models. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.models.repository import Models
from inference_service.open_inference.tensors import datatype
from vision import TensorInfo

EXTENSIONS = ("model_configuration", "statistics")
"""Triton's names of the supported extensions of the standard."""


def metadata(model: Model, models: Models) -> oip.ModelMetadataResponse:
    """Return the versions and tensors of a model.

    The batch axis is always free: a model with a fixed batch size is run as often as needed. Height
    and width of the input are those of the model's preprocessing, so that requests can share a run.
    Every other free axis is -1.
    """
    session = model.network.session
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=[other.version for other in models.all if other.name == model.name],
        platform="onnx_onnxv1",  # the standard's name; ModelConfig uses Triton's
        inputs=[_tensor(info, _input_dims(model)) for info in session.inputs],
        outputs=[_tensor(info, _dims(info)) for info in session.outputs],
    )


def config(model: Model, max_rows: int) -> oip.ModelConfig:
    """Return a model's configuration for Triton's clients.

    Args:
        model: the model.
        max_rows: maximum rows of one request.
    """
    session, lane = model.network.session, model.lane
    configuration = oip.ModelConfig(
        name=model.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=max_rows,
        input=[
            oip.ModelInput(
                name=info.name, data_type=_data_type(info.dtype), dims=_input_dims(model)
            )
            for info in session.inputs
        ],
        output=[
            oip.ModelOutput(name=info.name, data_type=_data_type(info.dtype), dims=_dims(info))
            for info in session.outputs
        ],
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
    if lane.max_rows > 1:
        configuration.dynamic_batching.preferred_batch_size.append(lane.max_rows)
        configuration.dynamic_batching.max_queue_delay_microseconds = round(lane.max_wait * 1e6)
    return configuration


def _tensor(info: TensorInfo, dims: Sequence[int]) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(
        name=info.name, datatype=datatype(info.dtype), shape=[-1, *dims]
    )


def _input_dims(model: Model) -> Sequence[int]:
    return (3, *model.network.input_size)


def _dims(info: TensorInfo) -> Sequence[int]:
    return [-1 if axis is None else axis for axis in info.shape[1:]]


def _data_type(dtype: np.dtype[Any]) -> oip.DataType.ValueType:
    return oip.DataType.Value(f"TYPE_{datatype(dtype)}")
