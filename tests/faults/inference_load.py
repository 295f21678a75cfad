"""Concurrent callers of all kinds, with the expected answer of each call."""

import asyncio
import hashlib
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from sightline.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from sightline.inference.v1.inference_pb2 import Image, ModelHint
from sightline.openinference.v2 import open_inference_pb2 as oip
from sightline.openinference.v2 import open_inference_pb2_grpc

from inference_service.models.engine import Model
from servicekit.errors import SightlineError, from_rpc_error
from tests.integration.inference.process import SERVICE, ask, names
from tests.unit.inference_service.open_inference.networks import SIDE, rows
from tests.unit.inference_service.tiny_onnx import corrupt, picture
from vision import OnnxClassifier, decode_image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PICTURES = {
    name: [picture(colour), picture(colour, size=(256, 128), kind="JPEG")]
    for name, colour in COLOURS.items()
}
LOST_SECONDS = 60.0
"""Seconds after which a call counts as lost."""
_LATE = {"DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", "QUEUE_TOO_SLOW", "CANCELLED"}
"""CANCELLED is gRPC's own status if the server's timer ends a call before the client's does."""
_Infer: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"


@dataclass
class Kept:
    """The observations of all callers together."""

    calls: Counter[str] = field(default_factory=Counter)
    """Number of calls by kind."""
    errors: Counter[str] = field(default_factory=Counter)
    """Expected refusals by reason."""
    doubled: int = 0
    """Keys with two different answers."""
    slowest: float = 0.0
    """Seconds."""


class Expected:
    """The expected answers, from the same models in this process.

    Args:
        two: path of the classifier.
    """

    def __init__(self, two: Model) -> None:
        assert isinstance(two.network, OnnxClassifier)
        self.tensor = rows(1)
        self.scores: NDArray[np.float32] = two.run(self.tensor)[0]
        self.classes = {name: self._class(two, data[0]) for name, data in PICTURES.items()}

    def _class(self, two: Model, data: bytes) -> int:
        tensor, _ = two.network.prepare(decode_image(data))
        return int(two.run(tensor)[0][0].argmax())


class Caller:
    """A client that makes sequential calls of random kinds, on its own channel.

    Args:
        address: address of the server.
        expected: the expected answers.
        observed: the shared observations.
        seed: seed of all random choices.
    """

    def __init__(self, address: str, expected: Expected, observed: Kept, seed: int) -> None:
        self._address = address
        self._expected = expected
        self._observed = observed
        self._chance = random.Random(seed)
        self._connect()
        weights: dict[Callable[[], Awaitable[None]], int] = {
            self._one_picture: 30,
            self._several_pictures: 8,
            self._another_model: 6,
            self._hot_model: 10,
            self._class_of_picture: 6,
            self._with_key: 8,
            self._twins: 4,
            self._key_of_another_request: 2,
            self._cancelled: 6,
            self._out_of_time: 6,
            self._bad_picture: 4,
            self._bad_among_good: 4,
            self._unknown_model: 2,
            self._tensor: 8,
            self._bad_tensor: 2,
            self._upload: 3,
            self._broken_upload: 2,
            self._forged_reference: 1,
            self._list_models: 2,
            self._health: 2,
            self._reconnect: 1,
        }
        self._kinds, self._weights = list(weights), list(weights.values())

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close(None)

    async def call(self) -> None:
        """Make one call, or a few that belong together.

        Raises:
            AssertionError: the server's answer is wrong.
        """
        (kind,) = self._chance.choices(self._kinds, self._weights)
        begun = time.perf_counter()
        await kind()
        self._observed.slowest = max(self._observed.slowest, time.perf_counter() - begun)
        self._observed.calls[kind.__name__.strip("_").replace("_", " ")] += 1

    def _connect(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(self._address, options=options)
        self._stub: Any = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        self._open: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._health_stub: Any = health_pb2_grpc.HealthStub(self._channel)
        self._raw = self._channel.unary_unary(f"/{SERVICE}/Infer", None, None)

    def _any(self) -> tuple[str, bytes]:
        """Return a random colour and an image of it."""
        name = self._chance.choice(list(COLOURS))
        return name, self._chance.choice(PICTURES[name])

    async def _infer(
        self, *images: bytes | Image, model: str = "", seconds: float = LOST_SECONDS
    ) -> inference_service_pb2.InferResponse:
        request = ask(*images, model=ModelHint(name=model))
        answer: inference_service_pb2.InferResponse
        answer = await self._stub.Infer(request, timeout=seconds)
        return answer

    async def _refusal(self, call: Awaitable[object], *reasons: str) -> SightlineError:
        """Return the error that a call must get."""
        try:
            answer = await call
        except grpc.aio.AioRpcError as failed:
            error = from_rpc_error(failed)
            assert error.reason in reasons, error
            self._observed.errors[error.reason] += 1
            return error
        raise AssertionError(f"must fail with {reasons}, was answered {answer}")

    async def _one_picture(self) -> None:
        name, data = self._any()
        answer = await self._infer(data)
        assert [names(result) for result in answer.results] == [[name]]
        assert answer.model_name == "colours"

    async def _several_pictures(self) -> None:
        images = [self._any() for _ in range(self._chance.randint(2, 4))]
        answer = await self._infer(*(data for _, data in images))
        assert [names(result) for result in answer.results] == [[name] for name, _ in images]

    async def _another_model(self) -> None:
        name, data = self._any()
        answer = await self._infer(data, model="other")
        assert (answer.model_name, names(answer.results[0])) == ("other", [name])

    async def _hot_model(self) -> None:
        """Call the model whose versions come and go; one of them always answers."""
        name, data = self._any()
        answer = await self._infer(data, model="hot")
        assert (answer.model_name, names(answer.results[0])) == ("hot", [name])

    async def _class_of_picture(self) -> None:
        name, _ = self._any()
        answer = await self._infer(PICTURES[name][0], model="two")
        assert answer.results[0].classes[0].class_id == self._expected.classes[name]

    async def _with_key(self) -> None:
        name, data = self._any()
        request, key = ask(data).SerializeToString(), str(uuid.UUID(int=self._bits(), version=4))
        first, replayed = await self._keyed(request, key)
        assert not replayed
        again, replayed = await self._keyed(request, key)
        assert replayed
        self._compare(first, again)
        answer = inference_service_pb2.InferResponse.FromString(first)
        assert names(answer.results[0]) == [name]

    async def _twins(self) -> None:
        _, data = self._any()
        request, key = ask(data).SerializeToString(), str(uuid.UUID(int=self._bits(), version=4))
        twins = await asyncio.gather(*(self._keyed(request, key) for _ in range(3)))
        assert sum(not replayed for _, replayed in twins) == 1, "one is the first, and only one"
        self._compare(*(answer for answer, _ in twins))

    async def _key_of_another_request(self) -> None:
        key = str(uuid.UUID(int=self._bits(), version=4))
        await self._keyed(ask(PICTURES["red"][0]).SerializeToString(), key)
        other = self._keyed(ask(PICTURES["blue"][0]).SerializeToString(), key)
        await self._refusal(other, "IDEMPOTENCY_KEY_REUSED")

    async def _cancelled(self) -> None:
        call = self._stub.Infer(ask(self._any()[1]), timeout=LOST_SECONDS)
        await asyncio.sleep(self._chance.choice((0, 0.001, 0.005)))
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            self._observed.errors["cancelled"] += 1

    async def _out_of_time(self) -> None:
        name, data = self._any()
        seconds = self._chance.choice((0.0005, 0.002, 0.01))
        try:
            answer = await self._infer(data, seconds=seconds)
        except grpc.aio.AioRpcError as failed:
            error = from_rpc_error(failed)
            assert error.reason in _LATE, error
            self._observed.errors["out of time"] += 1
        else:
            assert names(answer.results[0]) == [name]

    async def _bad_picture(self) -> None:
        await self._refusal(self._infer(corrupt()), "IMAGE_CORRUPT")

    async def _bad_among_good(self) -> None:
        name, data = self._any()
        first, second, third = (await self._infer(data, corrupt(), b"no picture")).results
        assert names(first) == [name]
        assert (second.error.reason, third.error.reason) == (
            "IMAGE_CORRUPT",
            "IMAGE_TYPE_UNSUPPORTED",
        )

    async def _unknown_model(self) -> None:
        await self._refusal(self._infer(self._any()[1], model="nobody"), "MODEL_NOT_FOUND")

    async def _tensor(self) -> None:
        answer = await self._open.ModelInfer(self._tensor_request(), timeout=LOST_SECONDS)
        scores = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(1, -1)
        assert answer.outputs[0].name == "scores"
        assert np.allclose(scores, self._expected.scores, rtol=1e-4, atol=1e-5)

    async def _bad_tensor(self) -> None:
        request = self._tensor_request()
        request.inputs[0].shape[3] += 1
        await self._refusal(self._open.ModelInfer(request, timeout=LOST_SECONDS), "INVALID_FIELD")

    def _tensor_request(self) -> oip.ModelInferRequest:
        request = oip.ModelInferRequest(model_name="two")
        request.inputs.add(name="images", datatype="FP32", shape=[1, 3, SIDE, SIDE])
        request.raw_input_contents.append(self._expected.tensor.tobytes())
        return request

    async def _upload(self) -> None:
        name, data = self._any()
        data = _unlike_others(data, self._bits())
        stored = await self._stub.UploadImage(parts(data), timeout=LOST_SECONDS)
        answer = await self._infer(Image(reference=stored.image.reference))
        assert names(answer.results[0]) == [name]

    async def _broken_upload(self) -> None:
        messages = list(parts(_unlike_others(self._any()[1], self._bits())))[:-1]
        call = self._stub.UploadImage(iter(messages), timeout=LOST_SECONDS)
        await self._refusal(call, "UPLOAD_INCOMPLETE")

    async def _forged_reference(self) -> None:
        forged = Image(reference="A" * 120)
        await self._refusal(self._infer(forged), "REFERENCE_UNKNOWN")

    async def _list_models(self) -> None:
        request = inference_service_pb2.ListModelsRequest()
        listed = await self._stub.ListModels(request, timeout=LOST_SECONDS)
        assert {model.name for model in listed.models} == {"colours", "other", "two", "hot"}

    async def _health(self) -> None:
        watch = self._health_stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        async for answer in watch:
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            break
        watch.cancel()

    async def _reconnect(self) -> None:
        await self._channel.close(None)
        self._connect()

    async def _keyed(self, request: bytes, key: str) -> tuple[bytes, bool]:
        """Return the answer to a call with a key, and True if it is marked as a replay."""
        metadata = (("idempotency-key", key),)
        call: _Infer = self._raw(request, timeout=LOST_SECONDS, metadata=metadata)
        answer = await call
        trailers = dict(await call.trailing_metadata())
        return answer, trailers.get("idempotent-replayed") == "true"

    def _compare(self, *answers: bytes) -> None:
        self._observed.doubled += len(set(answers)) - 1

    def _bits(self) -> int:
        return self._chance.getrandbits(128)


def _unlike_others(data: bytes, number: int) -> bytes:
    """Return the image with unique bytes after its end, which decoders ignore."""
    return data + number.to_bytes(16)


def parts(data: bytes) -> Iterator[inference_service_pb2.UploadImageRequest]:
    """Yield the messages of an upload."""
    message = inference_service_pb2.UploadImageRequest
    digest = hashlib.sha256(data).digest()
    header = inference_service_pb2.UploadHeader(sha256=digest, size_bytes=len(data))
    yield message(header=header)
    step = len(data) // 3 + 1
    for at in range(0, len(data), step):
        yield message(chunk=data[at : at + step])


async def call_for(callers: Sequence[Caller], count: int) -> None:
    """Run all callers until they have made this many calls together."""
    left = count

    async def go(caller: Caller) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await caller.call()

    async with asyncio.TaskGroup() as group:
        for caller in callers:
            group.create_task(go(caller))
