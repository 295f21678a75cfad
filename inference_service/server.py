"""`sightline.inference.v1.InferenceService`: the handlers of the gRPC service."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from sightline.inference.v1 import inference_service_pb2

from inference_service import answers
from inference_service.idempotency.keys import METADATA_KEY, REPLAYED_KEY
from inference_service.pipeline import CallMetadata, InferencePipeline
from inference_service.serving.admission import Share
from inference_service.uploads.parts import Header, Part
from inference_service.uploads.receive import Uploads
from servicekit.auth.caller import Scope, current_caller
from servicekit.calls import deadline, memory_budget
from servicekit.lifecycle import Service, add_methods

SERVICE_NAME = "sightline.inference.v1.InferenceService"
_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServer:
    """Handlers that translate messages and call the pipeline and the uploads."""

    def __init__(self, pipeline: InferencePipeline, uploads: Uploads) -> None:
        self._pipeline = pipeline
        self._uploads = uploads

    async def Infer(  # noqa: N802 - the contract's name
        self, request: inference_service_pb2.InferRequest, context: _Context
    ) -> bytes:
        """Return the serialized `InferResponse` for one or more images, byte for byte as stored."""
        response = await self._pipeline.infer(call_of(self._pipeline, context), request)
        if response.replayed:
            context.set_trailing_metadata([(REPLAYED_KEY, "true")])
        return response.payload

    async def UploadImage(  # noqa: N802 - the contract's name
        self,
        request_iterator: AsyncIterator[inference_service_pb2.UploadImageRequest],
        context: _Context,
    ) -> inference_service_pb2.UploadImageResponse:
        """Store an image, and return a reference to it."""
        del context
        started = self._pipeline.clock()
        uploaded = await self._uploads.receive(current_caller(), _parts(request_iterator))
        self._pipeline.telemetry.stage("", "upload", self._pipeline.clock() - started)
        return answers.uploaded(uploaded)

    async def ListModels(  # noqa: N802 - the contract's name
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """Return the loaded models."""
        del request, context
        return answers.model_list(self._pipeline.models)


def service(pipeline: InferencePipeline, uploads: Uploads) -> Service:
    """Return the service for `servicekit.lifecycle.serve`."""
    handlers = InferenceServer(pipeline, uploads)

    def register(server: grpc.aio.Server) -> None:
        rpcs = {
            # The response is sent as the stored bytes.
            "Infer": grpc.unary_unary_rpc_method_handler(
                handlers.Infer,
                request_deserializer=inference_service_pb2.InferRequest.FromString,
                response_serializer=None,
            ),
            "UploadImage": grpc.stream_unary_rpc_method_handler(
                handlers.UploadImage,
                request_deserializer=inference_service_pb2.UploadImageRequest.FromString,
                response_serializer=inference_service_pb2.UploadImageResponse.SerializeToString,
            ),
            "ListModels": grpc.unary_unary_rpc_method_handler(
                handlers.ListModels,
                request_deserializer=inference_service_pb2.ListModelsRequest.FromString,
                response_serializer=inference_service_pb2.ListModelsResponse.SerializeToString,
            ),
        }
        add_methods(server, SERVICE_NAME, rpcs)

    access = dict.fromkeys(("Infer", "UploadImage", "ListModels"), Scope.INFER)
    return Service(SERVICE_NAME, register, access, large=("Infer", "UploadImage"))


async def _parts(
    requests: AsyncIterator[inference_service_pb2.UploadImageRequest],
) -> AsyncIterator[Part]:
    async for request in requests:
        part = _part(request)
        del request  # or its memory would be held while the next message is awaited
        yield part
        del part


def _part(request: inference_service_pb2.UploadImageRequest) -> Part:
    match request.WhichOneof("part"):
        case "header":
            return Header(request.header.sha256, request.header.size_bytes)
        case "chunk":
            return request.chunk
        case _:
            return None


def call_of(pipeline: InferencePipeline, context: _Context) -> CallMetadata:
    """Return the metadata of the call that a handler of the service is processing."""
    now, caller = pipeline.clock(), current_caller()
    keys = [str(value) for key, value in context.invocation_metadata() or () if key == METADATA_KEY]
    return CallMetadata(
        caller=caller.identity,
        keys=keys,
        arrived=now,
        deadline=now + deadline.remaining(context),
        size=memory_budget.held(),
        share=Share(caller.flow, pipeline.weights.get(caller.name, 1.0)),
    )
