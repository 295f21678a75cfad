"""The gRPC handlers of the Open Inference Protocol."""

from typing import Any

import grpc
from sightline.openinference.v2 import open_inference_pb2 as oip
from sightline.openinference.v2 import open_inference_pb2_grpc

from inference_service.idempotency.keys import REPLAYED_KEY
from inference_service.models.engine import Model
from inference_service.open_inference import describe
from inference_service.open_inference.infer import Inference
from inference_service.open_inference.request import check_model
from inference_service.open_inference.statistics import Statistics
from inference_service.pipeline import InferencePipeline
from inference_service.server import call_of
from servicekit.auth.caller import Scope
from servicekit.distribution import version
from servicekit.errors import SightlineError
from servicekit.lifecycle import Service

_Context = grpc.aio.ServicerContext[Any, Any]


class OpenInferenceServer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Handlers that translate messages and call the pipeline."""

    def __init__(self, pipeline: InferencePipeline) -> None:
        self._pipeline = pipeline
        self._statistics = Statistics()
        self._inference = Inference(pipeline, self._statistics)

    async def ServerLive(  # noqa: N802 - the contract's name
        self, request: oip.ServerLiveRequest, context: _Context
    ) -> oip.ServerLiveResponse:
        """Return true: the process is alive."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802 - the contract's name
        self, request: oip.ServerReadyRequest, context: _Context
    ) -> oip.ServerReadyResponse:
        """Return true once the models are loaded and warm, unless their device has died."""
        del request, context
        return oip.ServerReadyResponse(ready=self._pipeline.ready)

    async def ModelReady(  # noqa: N802 - the contract's name
        self, request: oip.ModelReadyRequest, context: _Context
    ) -> oip.ModelReadyResponse:
        """Return true if the model is loaded and the server is ready."""
        del context
        try:
            self._find(request.name, request.version)
        except SightlineError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._pipeline.ready)

    async def ServerMetadata(  # noqa: N802 - the contract's name
        self, request: oip.ServerMetadataRequest, context: _Context
    ) -> oip.ServerMetadataResponse:
        """Return the server's name, version and extensions."""
        del request, context
        return oip.ServerMetadataResponse(
            name="sightline", version=version(), extensions=describe.EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802 - the contract's name
        self, request: oip.ModelMetadataRequest, context: _Context
    ) -> oip.ModelMetadataResponse:
        """Return a model's versions and tensors; NOT_FOUND if it is not loaded."""
        del context
        model = self._find(request.name, request.version)
        return describe.metadata(model, self._pipeline.models)

    async def ModelConfig(  # noqa: N802 - the contract's name
        self, request: oip.ModelConfigRequest, context: _Context
    ) -> oip.ModelConfigResponse:
        """Return a model's configuration; NOT_FOUND if it is not loaded."""
        del context
        model = self._find(request.name, request.version)
        config = describe.config(model, self._pipeline.limits.max_images)
        return oip.ModelConfigResponse(config=config)

    async def ModelStatistics(  # noqa: N802 - the contract's name
        self, request: oip.ModelStatisticsRequest, context: _Context
    ) -> oip.ModelStatisticsResponse:
        """Return the counts of one version, of a model's versions, or of all models."""
        del context
        models = self._pipeline.models.all
        if request.name:
            self._find(request.name, request.version)
            models = [model for model in models if model.name == request.name]
        if request.version:
            models = [model for model in models if model.version == request.version]
        return self._statistics.message(models)

    async def ModelInfer(  # noqa: N802 - the contract's name
        self, request: oip.ModelInferRequest, context: _Context
    ) -> oip.ModelInferResponse:
        """Return a model's outputs for tensors or encoded images."""
        response, replayed = await self._inference.infer(call_of(self._pipeline, context), request)
        if replayed:
            context.set_trailing_metadata([(REPLAYED_KEY, "true")])
        return response

    def _find(self, name: str, version: str) -> Model:
        check_model("", name, version)
        return self._pipeline.models.find(name, version)


def service(pipeline: InferencePipeline) -> Service:
    """Return the service for `servicekit.lifecycle.serve`."""
    handlers = OpenInferenceServer(pipeline)

    def register(server: grpc.aio.Server) -> None:
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(handlers, server)

    access: dict[str, Scope | None] = dict.fromkeys(
        (
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "ModelInfer",
        ),
        Scope.INFER,
    )
    # The protocol's health checks carry no credentials.
    access |= {"ServerLive": None, "ServerReady": None}
    return Service("inference.GRPCInferenceService", register, access, large=("ModelInfer",))
