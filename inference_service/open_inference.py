"""`inference.GRPCInferenceService` (Open Inference Protocol v2) over the same models.

Health and metadata are served; `ModelInfer` is not yet, and so no tensors are described.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
from sightline.openinference.v2 import open_inference_pb2 as oip
from sightline.openinference.v2 import open_inference_pb2_grpc

from inference_service.pipeline import Pipeline
from servicekit.auth.caller import Scope
from servicekit.errors import SightlineError, invalid
from servicekit.lifecycle import Service

_Context = grpc.aio.ServicerContext[Any, Any]


class OpenInferenceServer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol's handlers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def ServerLive(  # noqa: N802 - the contract's name
        self, request: oip.ServerLiveRequest, context: _Context
    ) -> oip.ServerLiveResponse:
        """Always true: the process answers."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802 - the contract's name
        self, request: oip.ServerReadyRequest, context: _Context
    ) -> oip.ServerReadyResponse:
        """True once the models are loaded and warm, unless their device has died since."""
        del request, context
        return oip.ServerReadyResponse(ready=self._pipeline.ready)

    async def ModelReady(  # noqa: N802 - the contract's name
        self, request: oip.ModelReadyRequest, context: _Context
    ) -> oip.ModelReadyResponse:
        """False for a model that is not loaded."""
        del context
        try:
            self._pipeline.models.find(_required(request.name), request.version)
        except SightlineError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._pipeline.ready)

    async def ServerMetadata(  # noqa: N802 - the contract's name
        self, request: oip.ServerMetadataRequest, context: _Context
    ) -> oip.ServerMetadataResponse:
        """The server's name and version; it knows no extensions."""
        del request, context
        return oip.ServerMetadataResponse(name="sightline", version=_version())

    async def ModelMetadata(  # noqa: N802 - the contract's name
        self, request: oip.ModelMetadataRequest, context: _Context
    ) -> oip.ModelMetadataResponse:
        """A model's versions and platform; NOT_FOUND if it is not loaded."""
        del context
        models = self._pipeline.models
        model = models.find(_required(request.name), request.version)
        return oip.ModelMetadataResponse(
            name=model.name,
            versions=[each.version for each in models.all if each.name == model.name],
            platform="onnx_onnxv1",
        )

    async def ModelInfer(  # noqa: N802 - the contract's name
        self, request: oip.ModelInferRequest, context: _Context
    ) -> oip.ModelInferResponse:
        """Not served yet: always UNIMPLEMENTED, `MODEL_INFER_NOT_IMPLEMENTED`."""
        del request, context
        raise SightlineError(
            grpc.StatusCode.UNIMPLEMENTED,
            "MODEL_INFER_NOT_IMPLEMENTED",
            "ModelInfer is not served yet: use sightline.inference.v1.InferenceService/Infer",
        )


def service(pipeline: Pipeline) -> Service:
    """Returns the service, ready to be served."""
    handlers = OpenInferenceServer(pipeline)

    def register(server: grpc.aio.Server) -> None:
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(handlers, server)

    # The protocol's health checks, which know no credentials.
    access: dict[str, Scope | None] = {"ServerLive": None, "ServerReady": None}
    for method in ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"):
        access[method] = Scope.INFER
    return Service("inference.GRPCInferenceService", register, access)


def _required(name: str) -> str:
    if not name:
        raise invalid("name", "must be given")
    return name


def _version() -> str:
    try:
        return version("sightline")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""
