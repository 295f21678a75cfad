"""`sightline.inference.v1.InferenceService`: messages in and out, nothing decided here."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc

from inference_service import answers
from inference_service.idempotency import METADATA_KEY, REPLAYED_KEY
from inference_service.pipeline import Call, Pipeline
from servicekit import deadline
from servicekit.auth.caller import Scope, current_caller
from servicekit.errors import SightlineError
from servicekit.lifecycle import Service

_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServer(inference_service_pb2_grpc.InferenceServiceServicer):
    """The service's handlers. `Infer` and `ListModels` work; `UploadImage` is not served yet."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def Infer(  # noqa: N802 - the contract's name
        self, request: inference_service_pb2.InferRequest, context: _Context
    ) -> inference_service_pb2.InferResponse:
        """Answers for one or more pictures."""
        reply = await self._pipeline.infer(self._call(context), request)
        if reply.replayed:
            context.set_trailing_metadata([(REPLAYED_KEY, "true")])
        return inference_service_pb2.InferResponse.FromString(reply.payload)

    async def UploadImage(  # noqa: N802 - the contract's name
        self,
        request_iterator: AsyncIterator[inference_service_pb2.UploadImageRequest],
        context: _Context,
    ) -> inference_service_pb2.UploadImageResponse:
        """Not served yet: always UNIMPLEMENTED, `UPLOAD_NOT_IMPLEMENTED`."""
        del request_iterator, context
        raise SightlineError(
            grpc.StatusCode.UNIMPLEMENTED,
            "UPLOAD_NOT_IMPLEMENTED",
            "UploadImage is not served yet: send the picture itself in Infer",
        )

    async def ListModels(  # noqa: N802 - the contract's name
        self, request: inference_service_pb2.ListModelsRequest, context: _Context
    ) -> inference_service_pb2.ListModelsResponse:
        """Lists the models that are loaded."""
        del request, context
        return answers.model_list(self._pipeline.models)

    def _call(self, context: _Context) -> Call:
        now = self._pipeline.clock()
        keys = [
            str(value) for key, value in context.invocation_metadata() or () if key == METADATA_KEY
        ]
        return Call(
            caller=current_caller().identity,
            keys=keys,
            arrived=now,
            deadline=now + deadline.remaining(context),
        )


def service(pipeline: Pipeline) -> Service:
    """Returns the service, ready to be served."""
    handlers = InferenceServer(pipeline)

    def register(server: grpc.aio.Server) -> None:
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(handlers, server)

    access = dict.fromkeys(("Infer", "UploadImage", "ListModels"), Scope.INFER)
    return Service("sightline.inference.v1.InferenceService", register, access)
