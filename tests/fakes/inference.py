"""A fake inference service on a real socket that follows a script, one step per call."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from grpc_status import rpc_status
from sightline.inference.v1 import (
    inference_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from sightline.types.v1 import prediction_pb2

from servicekit.errors import SightlineError, to_status


@dataclass(frozen=True)
class Reply:
    """Answer with these results, or with one scratch per picture."""

    results: Sequence[inference_pb2.ImageResult] | None = None
    replayed: bool = False


@dataclass(frozen=True)
class Refuse:
    """Fail with this error."""

    error: SightlineError


@dataclass(frozen=True)
class Forget:
    """Report the references in the request as unknown."""


@dataclass(frozen=True)
class Wait:
    """Carry out a step after a delay in seconds (UploadImage)."""

    seconds: float


@dataclass(frozen=True)
class PushBack:
    """Fail with UNAVAILABLE and gRPC's push-back metadata, which says when to retry."""

    milliseconds: str


@dataclass(frozen=True)
class Hang:
    """Send no answer until the caller has gone."""


Step = Reply | Refuse | Forget | Wait | PushBack | Hang


@dataclass(frozen=True)
class Seen:
    """A call as the service received it."""

    request: inference_service_pb2.InferRequest
    metadata: dict[str, str | bytes]
    time_remaining: float | None


@dataclass
class FakeInference(inference_service_pb2_grpc.InferenceServiceServicer):
    """A fake inference service; `seen` holds the calls of Infer."""

    script: Sequence[Step]
    upload_script: Sequence[Step] = ()
    """Steps of UploadImage, one per call, the last repeated; empty if the method does not exist."""
    uploads: list[bytes] = field(default_factory=list)
    """Completed uploads by reference: `ref-0`, `ref-1`, ..."""
    upload_calls: int = 0
    models: Sequence[inference_pb2.ModelInfo] = ()
    """Answer of ListModels; empty for one model that is not the default."""
    model_version: str = "3"
    """Model that answers."""
    seen: list[Seen] = field(default_factory=list)
    target: str = ""
    called: threading.Event = field(default_factory=threading.Event)
    """Set once Infer has been called."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a caller has cancelled a call that hung."""

    def Infer(  # noqa: N802 - the name in the proto
        self, request: inference_service_pb2.InferRequest, context: grpc.ServicerContext
    ) -> inference_service_pb2.InferResponse:
        metadata = dict(context.invocation_metadata())
        self.seen.append(Seen(request, metadata, context.time_remaining()))
        self.called.set()
        step = self.script[min(len(self.seen), len(self.script)) - 1]
        match step:
            case Refuse(error):
                context.abort_with_status(rpc_status.to_status(to_status(error)))
            case Forget():
                lost = SightlineError(grpc.StatusCode.NOT_FOUND, "REFERENCE_GONE", "gone")
                context.abort_with_status(rpc_status.to_status(to_status(lost)))
            case PushBack(milliseconds):
                context.set_trailing_metadata((("grpc-retry-pushback-ms", milliseconds),))
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            case Hang():
                self._hang(context)
            case Reply(results, replayed):
                if replayed:
                    context.set_trailing_metadata((("idempotent-replayed", "true"),))
                return _response(request, results, self.model_version)
        return inference_service_pb2.InferResponse()

    def ListModels(  # noqa: N802 - as above
        self, request: inference_service_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> inference_service_pb2.ListModelsResponse:
        self.seen.append(
            Seen(
                inference_service_pb2.InferRequest(),
                dict(context.invocation_metadata()),
                context.time_remaining(),
            )
        )
        if isinstance(step := self.script[0], Refuse):
            context.abort_with_status(rpc_status.to_status(to_status(step.error)))
        plates = inference_pb2.ModelInfo(
            name="plates",
            version="3",
            task=inference_pb2.MODEL_TASK_DETECT,
            labels=["scratch", "pit"],
            input_width=320,
            input_height=256,
            provider="CPUExecutionProvider",
            default_version=True,
        )
        return inference_service_pb2.ListModelsResponse(models=self.models or [plates])

    def UploadImage(  # noqa: N802 - as above
        self,
        request_iterator: Iterator[inference_service_pb2.UploadImageRequest],
        context: grpc.ServicerContext,
    ) -> inference_service_pb2.UploadImageResponse:
        self.upload_calls += 1
        if not self.upload_script:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in the script")
        match self.upload_script[min(self.upload_calls, len(self.upload_script)) - 1]:
            case Refuse(error):
                context.abort_with_status(rpc_status.to_status(to_status(error)))
            case Hang():
                self.called.set()
                self._hang(context)
            case Wait(seconds):
                time.sleep(seconds)
        parts = list(request_iterator)
        data = b"".join(part.chunk for part in parts[1:])
        assert parts[0].header.size_bytes == len(data)
        assert parts[0].header.sha256 == hashlib.sha256(data).digest()
        self.uploads.append(data)
        reference = f"ref-{len(self.uploads) - 1}"
        return inference_service_pb2.UploadImageResponse(
            image=inference_pb2.ImageReference(reference=reference, size_bytes=len(data))
        )

    def _hang(self, context: grpc.ServicerContext) -> None:
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(30)
        self.left.set()


def _response(
    request: inference_service_pb2.InferRequest,
    results: Sequence[inference_pb2.ImageResult] | None,
    version: str,
) -> inference_service_pb2.InferResponse:
    if results is None:
        results = [scratch(image.image_id) for image in request.images]
    timing = inference_pb2.StageTiming()
    timing.infer.FromMilliseconds(25)
    timing.total.FromMilliseconds(40)
    return inference_service_pb2.InferResponse(
        results=results, model_name="plates", model_version=version, timing=timing
    )


def scratch(image_id: str = "") -> inference_pb2.ImageResult:
    """Return the result of an image of 64 x 48 pixels with one scratch, exact in float32."""
    detection = prediction_pb2.Detection(
        class_id=1,
        class_name="scratch",
        confidence=0.75,
        box=prediction_pb2.BoundingBox(x_min=1, y_min=2, x_max=30.5, y_max=40),
    )
    return inference_pb2.ImageResult(
        image_id=image_id, image_width=64, image_height=48, detections=[detection]
    )


@contextmanager
def serving(
    *script: Step,
    at: str = "127.0.0.1:0",
    uploads: Sequence[Step] = (),
    models: Sequence[inference_pb2.ModelInfo] = (),
) -> Iterator[FakeInference]:
    """Serve the script on a free loopback port; the last step is repeated."""
    fake = FakeInference(script, uploads, models=models)
    server = grpc.server(ThreadPoolExecutor(8))
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(fake, server)
    fake.target = f"127.0.0.1:{server.add_insecure_port(at)}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()
