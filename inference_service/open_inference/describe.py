"""What the protocol says about the server and its models. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.models.repository import Models
from inference_service.open_inference.tensors import datatype
from vision import TensorInfo

EXTENSIONS = ("model_configuration", "statistics")
"""Triton's names of what is served beside the standard."""


def metadata(model: Model, models: Models) -> oip.ModelMetadataResponse:
    """Return a model's versions and tensors.

    The batch axis is free in any case: a model of a fixed batch is run as often as needed. The
    input's height and width are those that the model's images get, so that requests can share a
    run; every other free axis is -1.
    """
    session = model.network.session
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=[each.version for each in models.all if each.name == model.name],
        platform="onnx_onnxv1",  # the standard's name for it; ModelConfig has Triton's
        inputs=[_tensor(each, _input_dims(model)) for each in session.inputs],
        outputs=[_tensor(each, _dims(each)) for each in session.outputs],
    )


def config(model: Model, max_rows: int) -> oip.ModelConfig:
    """Return a model's configuration as Triton's clients read it.

    Args:
        model: which.
        max_rows: of one request.
    """
    session, lane = model.network.session, model.lane
    made = oip.ModelConfig(
        name=model.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=max_rows,
        input=[
            oip.ModelInput(
                name=each.name, data_type=_data_type(each.dtype), dims=_input_dims(model)
            )
            for each in session.inputs
        ],
        output=[
            oip.ModelOutput(name=each.name, data_type=_data_type(each.dtype), dims=_dims(each))
            for each in session.outputs
        ],
        model_transaction_policy=oip.ModelTransactionPolicy(decoupled=False),
    )
    if lane.max_rows > 1:
        made.dynamic_batching.preferred_batch_size.append(lane.max_rows)
        made.dynamic_batching.max_queue_delay_microseconds = round(lane.max_wait * 1e6)
    return made


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
