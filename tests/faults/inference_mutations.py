"""Damaged images and requests to the inference service.

The result of each is checked against docs/reference/errors.md, which has the reasons of a
refusal.
"""

import hashlib
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf.message import DecodeError
from sightline.inference.v1 import inference_service_pb2
from sightline.inference.v1.inference_pb2 import Image, InferParameters, MaskFormat, ModelHint
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.domain import CheckedImage
from inference_service.models.engine import Model
from inference_service.open_inference import request as open_requests
from inference_service.open_inference import work
from inference_service.uploads import parts
from inference_service.uploads.parts import Header, Part
from inference_service.validate import RequestLimits, check
from servicekit.errors import SightlineError
from tests.faults.inference_pictures import damaged_picture, pictures
from tests.pages import section
from tests.unit.inference_service.open_inference.networks import SIDE, loaded, network
from tests.unit.ingest_service import wire
from tests.unit.ingest_service.mutate import damaged, spoiled
from vision import ImageError, ImageLimits, OpenedImage

LIMITS = RequestLimits(4, ImageLimits(max_bytes=200_000, max_pixels=1_000_000))
"""Request limits of the campaigns' server."""
SLOW_SECONDS = 5.0
"""Maximum seconds of one request, generous for a busy machine."""


@dataclass
class Tally:
    """The results of the damaged requests."""

    requests: int = 0
    answered: int = 0
    """Requests that were read in spite of the damage."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refused requests by reason."""
    slowest: float = 0.0
    """Seconds."""
    grown: int = 0
    """Growth of the process in the second half, bytes."""

    def add(self, other: "Tally") -> None:
        """Add the results of another process."""
        self.requests += other.requests
        self.answered += other.answered
        self.refused.update(other.refused)
        self.slowest = max(self.slowest, other.slowest)
        self.grown = max(self.grown, other.grown)


@cache
def documented() -> frozenset[str]:
    """Return the reasons in the tables of docs/reference/errors.md about inference."""
    rows = re.findall(r"^\|.*$", section("reference/errors.md", "Inference service"), re.MULTILINE)
    return frozenset(reason for row in rows for reason in re.findall(r"`([A-Z][A-Z0-9_]+)`", row))


@dataclass(frozen=True)
class Damaged:
    """A damaged request."""

    method: str
    """`Infer`, `ModelInfer` or `UploadImage`."""
    messages: tuple[bytes, ...]


def damaged_requests(seed: int, count: int) -> Iterator[Damaged]:
    """Yield this many damaged requests, the same ones for the same seed.

    In two of three only the image is damaged; in the others, fields or bytes are.
    """
    chance, originals = random.Random(seed), pictures()
    whole = _whole_requests(originals)
    for at in range(count):
        if at % 3:
            yield _with_picture(damaged_picture(originals, chance), chance)
        else:
            yield _damaged_message(*chance.choice(whole), chance)


def _with_picture(data: bytes, chance: random.Random) -> Damaged:
    match chance.randrange(8):
        case 0:
            return Damaged("ModelInfer", (_encoded(data).SerializeToString(),))
        case 1:
            return Damaged("UploadImage", tuple(_upload(data, chance.choice((1, 2, 5)))))
        case _:
            return Damaged("Infer", (_asking(data).SerializeToString(),))


def _asking(*data: bytes) -> inference_service_pb2.InferRequest:
    return inference_service_pb2.InferRequest(images=[Image(data=message) for message in data])


def _encoded(*data: bytes) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="two", id="1")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(data)])
    tensor.contents.bytes_contents.extend(data)
    return request


def _upload(data: bytes, chunks: int) -> Iterator[bytes]:
    make = inference_service_pb2.UploadImageRequest
    digest = hashlib.sha256(data).digest()
    header = inference_service_pb2.UploadHeader(sha256=digest, size_bytes=len(data))
    yield make(header=header).SerializeToString()
    step = max(-(-len(data) // chunks), 1)
    for at in range(0, len(data), step):
        yield make(chunk=data[at : at + step]).SerializeToString()


_Whole = tuple[str, tuple[bytes, ...], tuple[list[wire.Field], ...]]


def _whole_requests(originals: Sequence[bytes]) -> list[_Whole]:
    """Return valid requests that set every field that a caller may set."""
    small = min(originals, key=len)
    rich = _asking(small, small)
    rich.images[0].image_id, rich.images[0].sha256 = "gate-1", hashlib.sha256(small).digest()
    rich.images.add(reference="0123456789abcdef")
    rich.model.CopyFrom(ModelHint(name="two", version="1"))
    rich.parameters.CopyFrom(
        InferParameters(
            confidence_threshold=0.5,
            iou_threshold=0.5,
            max_detections=9,
            top_k=2,
            mask_format=MaskFormat.MASK_FORMAT_RLE,
            polygon_tolerance=2,
        )
    )
    raw = oip.ModelInferRequest(model_name="two", model_version="1", id="7")
    raw.parameters["timeout"].int64_param = 30_000_000
    raw.parameters["priority"].string_param = "1"
    raw.inputs.add(name="images", datatype="FP32", shape=[2, 3, SIDE, SIDE])
    raw.outputs.add(name="scores")
    raw.raw_input_contents.append(np.full((2, 3, SIDE, SIDE), 0.5, "<f4").tobytes())
    typed = oip.ModelInferRequest(model_name="two")
    tensor = typed.inputs.add(name="images", datatype="FP32", shape=[1, 3, SIDE, SIDE])
    tensor.contents.fp32_contents.extend([0.25] * (3 * SIDE * SIDE))
    uploaded = tuple(_upload(small, 3))
    return [
        _whole("Infer", rich),
        _whole("ModelInfer", raw),
        _whole("ModelInfer", typed),
        _whole("ModelInfer", _encoded(small, small)),
        (
            "UploadImage",
            uploaded,
            tuple(
                wire.read(message, inference_service_pb2.UploadImageRequest.DESCRIPTOR)
                for message in uploaded
            ),
        ),
    ]


def _whole(
    method: str, message: inference_service_pb2.InferRequest | oip.ModelInferRequest
) -> _Whole:
    data = message.SerializeToString()
    return method, (data,), (wire.read(data, message.DESCRIPTOR),)


def _damaged_message(
    method: str,
    messages: tuple[bytes, ...],
    fields: tuple[list[wire.Field], ...],
    chance: random.Random,
) -> Damaged:
    spoiled_messages, at = list(messages), chance.randrange(len(messages))
    if chance.random() < 0.5:
        spoiled_messages[at] = spoiled(fields[at], chance)
    else:
        spoiled_messages[at] = damaged(messages[at], chance)
    if method == "UploadImage" and chance.random() < 0.3:
        _rearrange(spoiled_messages, chance)
    return Damaged(method, tuple(spoiled_messages))


def _rearrange(messages: list[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(messages))
    match chance.randrange(3):
        case 0:
            del messages[at]
        case 1:
            messages.insert(at, messages[at])
        case _:
            chance.shuffle(messages)


def run(seed: int, count: int, folder: Path) -> Tally:
    """Read damaged requests with the service's own code, without a socket.

    Args:
        seed: seed of all random choices.
        count: number of requests.
        folder: folder for a model.

    Raises:
        AssertionError: a result is not as documented.
    """
    warnings.simplefilter("ignore")  # Pillow's warnings about damaged EXIF
    reader = Reader(loaded(network(folder / f"{seed}/two/1/model.onnx"), max_rows=4))
    tally, requests, before = Tally(), damaged_requests(seed, count), 0
    for part in range(2):
        if part:
            before = psutil.Process().memory_info().rss
        for request in islice(requests, count // 2 + part * (count % 2)):
            _read_one(reader, request, tally)
    tally.grown = psutil.Process().memory_info().rss - before
    return tally


def _read_one(reader: "Reader", damaged: Damaged, tally: Tally) -> None:
    begun = time.perf_counter()
    try:
        reader.read(damaged)
        tally.answered += 1
    except SightlineError as error:
        assert_documented(error.code.name, error.reason, damaged)
        tally.refused[error.reason] += 1
    except Exception as error:
        raise AssertionError(f"{damaged.method} {_hex(damaged)}") from error
    seconds = time.perf_counter() - begun
    assert seconds < SLOW_SECONDS, _hex(damaged)
    tally.slowest = max(tally.slowest, seconds)
    tally.requests += 1


def assert_documented(code: str, reason: str, damaged: Damaged) -> None:
    """Fail unless this is a documented error for bad input."""
    allowed = {"INVALID_ARGUMENT", "NOT_FOUND"}
    if damaged.method == "ModelInfer" and b"timeout" in damaged.messages[0]:
        allowed |= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}  # damage may leave too little time
    assert reason in documented(), (code, reason, damaged.method, _hex(damaged))
    assert code in allowed, (code, reason, damaged.method, _hex(damaged))


def _hex(damaged: Damaged) -> list[str]:
    return [message.hex() for message in damaged.messages]


class Reader:
    """A reader that parses and checks requests as the service does, up to the network's input.

    Args:
        model: model for requests of the Open Inference Protocol.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._read: dict[str, Callable[[tuple[bytes, ...]], None]] = {
            "Infer": self._infer,
            "ModelInfer": self._model_infer,
            "UploadImage": self._upload,
        }

    def read(self, damaged: Damaged) -> None:
        """Read a request; raises SightlineError if it is refused."""
        self._read[damaged.method](damaged.messages)

    def _infer(self, messages: tuple[bytes, ...]) -> None:
        checked = check(_parsed(inference_service_pb2.InferRequest, messages[0]), LIMITS)
        for image in checked.images:
            if isinstance(image, CheckedImage):
                _decode(image.opened)

    def _model_infer(self, messages: tuple[bytes, ...]) -> None:
        infer_request = open_requests.read(
            _parsed(oip.ModelInferRequest, messages[0]), self._model, LIMITS
        )
        for member in work.members(infer_request, self._model):
            tensor = member.prepare()
            assert tensor.shape == (member.rows, 3, SIDE, SIDE)

    def _upload(self, messages: tuple[bytes, ...]) -> None:
        make = inference_service_pb2.UploadImageRequest
        first, *rest = (_part(_parsed(make, message)) for message in messages or (b"",))
        header = parts.check_first(first, LIMITS.image.max_bytes)
        content = bytearray()
        for message in rest:
            content += parts.check_next(message, header, len(content))
        parts.check_end(header, len(content), hashlib.sha256(content).digest())


def _parsed(kind: type[Any], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise _malformed() from error


def _malformed() -> SightlineError:
    return SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "")


def _part(message: inference_service_pb2.UploadImageRequest) -> Part:
    part = message.WhichOneof("part")
    if part == "header":
        return Header(message.header.sha256, message.header.size_bytes)
    return message.chunk if part else None


def _decode(opened: OpenedImage) -> None:
    try:
        pixels = opened.decode()
    except ImageError as error:
        raise SightlineError(grpc.StatusCode.INVALID_ARGUMENT, error.reason, "") from error
    assert pixels.ndim == 3
    assert pixels.size <= 3 * LIMITS.image.max_pixels
