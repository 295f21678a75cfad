"""Effects of one caller's floods on another, over real sockets.

How much the well-behaved caller asks for goes by how long the model takes on this machine now.
"""

import asyncio
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from PIL import Image

from servicekit.auth.caller import Scope
from servicekit.auth.key_file import KeyFile
from servicekit.errors import from_rpc_error
from tests.integration.inference.process import (
    SERVICE,
    InferenceProcess,
    InferenceStub,
    ask,
    client,
    started,
)
from tests.unit.inference_service.tiny_onnx import colour_model, picture

pytestmark = pytest.mark.alone

RUN_MATMULS = 6  # some 20 to 60 ms a picture
CALLS = 20
DEADLINE_SECONDS = 2.0
SHARE = 0.95
RED = ask(picture()).SerializeToString()


@dataclass
class DeviceFleet:
    """A server, and the secrets of its callers."""

    server: InferenceProcess
    secrets: dict[str, str]

    @asynccontextmanager
    async def caller(self, name: str) -> AsyncIterator["RequestSender"]:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.server.address, options=options) as channel:
            await channel.channel_ready()
            yield RequestSender(channel, self.secrets[name])


@dataclass
class RequestSender:
    """One caller, and what became of its calls."""

    channel: grpc.aio.Channel
    secret: str
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    async def ask(self, request: bytes, seconds: float) -> None:
        call = self.channel.unary_unary(f"/{SERVICE}/Infer", None, None)
        metadata = (("authorization", f"Bearer {self.secret}"),)
        begun = time.perf_counter()
        try:
            await call(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            self.reasons[from_rpc_error(error).reason] += 1
        else:
            self.reasons["OK"] += 1
            self.seconds.append(time.perf_counter() - begun)

    async def flood(self, request: bytes, seconds: float, at_once: int) -> None:
        """Keep so many calls under way until cancelled; one that is refused is made again."""

        async def again() -> None:
            while True:
                await self.ask(request, seconds)
                await asyncio.sleep(0.02)  # the flood shares the machine with the server

        await asyncio.gather(*(again() for _ in range(at_once)))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFleet]:
    folder = tmp_path_factory.mktemp("isolation")
    colour_model(folder / "models/busy/1/model.onnx", matmuls=RUN_MATMULS)
    names = ["good", *(f"flood-{number}" for number in range(4))]
    keys = KeyFile(folder / "keys")
    secrets = {name: keys.create(name, devices=["*"], scopes=[Scope.INFER])[0] for name in names}
    flags = [
        *("--model-repository", str(folder / "models"), "--workers", "2"),
        *("--api-keys-file", str(folder / "keys"), "--metrics-listen", "127.0.0.1:0"),
    ]
    with started(folder, *flags) as server:
        yield DeviceFleet(server, secrets)


# Sizes of a request's pictures. They are made by the test: each process of pytest's comes by here.
ONE, SIXTEEN, LARGE = [(128, 128)], [(128, 128)] * 16, [(4000, 3000)]
FLOODS = {
    "long deadlines": (ONE, 600.0, 100, 1),
    "many callers": (ONE, 600.0, 25, 4),
    "short deadlines": (ONE, 0.3, 60, 1),
    "many pictures": (SIXTEEN, 60.0, 16, 1),
    "many batches": (SIXTEEN, 1.0, 128, 1),
    "large pictures": (LARGE, 60.0, 30, 1),
}


@pytest.mark.parametrize("shape", FLOODS)
async def test_a_caller_below_its_share_is_in_time_beside_a_flood(
    fleet: DeviceFleet, shape: str
) -> None:
    """Item 4."""
    sizes, seconds, at_once, callers = FLOODS[shape]
    request = ask(*(picture(size=size) for size in sizes)).SerializeToString()
    async with fleet.caller("good") as good:
        for _ in range(4):
            await good.ask(RED, 30)
        run = min(good.seconds)
        good.reasons.clear()
        async with fleet.caller("flood-0") as second:
            await second.ask(request, 60)  # what has begun is not interrupted
        deadline = max(DEADLINE_SECONDS, 4 * max(second.seconds) / len(sizes))
        floods = [
            asyncio.create_task(_flood(fleet, f"flood-{number}", request, seconds, at_once))
            for number in range(callers)
        ]
        await asyncio.sleep(1.0)  # the flood is what is there first
        for _ in range(CALLS):
            begun = time.perf_counter()
            await good.ask(RED, deadline)
            # Half of its share of two workers, at most.
            pause = (callers + 1) * run - (time.perf_counter() - begun)
            await asyncio.sleep(max(pause, 0.0))
        for flood in floods:
            flood.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    assert good.reasons["OK"] >= SHARE * CALLS, good.reasons


@pytest.mark.parametrize(
    "calls",
    [CALLS, pytest.param(20 * CALLS, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
async def test_runs_that_outlast_a_deadline_make_no_short_run_late(
    fleet: DeviceFleet, calls: int
) -> None:
    """Item 4: a run that has begun is not interrupted, and a short one passes it."""
    jpeg = slow_jpeg()
    one, sixteen = (ask(*[jpeg] * count).SerializeToString() for count in (1, 16))
    async with fleet.caller("good") as good:
        for _ in range(4):
            await good.ask(RED, 30)
        run = min(good.seconds)
        good.reasons.clear()
        async with fleet.caller("flood-0") as other:
            await other.ask(one, 60)
        (long,) = other.seconds
        deadline = 0.8 * long
        assert deadline > 8 * run, "the flood's runs are long beside the other caller's"
        flood = asyncio.create_task(_flood(fleet, "flood-0", sixteen, 60.0, 8))
        await asyncio.sleep(1.0)
        for _ in range(calls):
            await good.ask(RED, deadline)
            await asyncio.sleep(run)
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
    assert good.reasons["OK"] >= SHARE * calls, good.reasons


def slow_jpeg() -> bytes:
    """Return a picture of 49 million pixels that is decoded in ten scans."""
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 7000), (200, 10, 10)).save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


async def _flood(
    fleet: DeviceFleet, name: str, request: bytes, seconds: float, at_once: int
) -> None:
    async with fleet.caller(name) as sender:
        await sender.flood(request, seconds, at_once)


@pytest.fixture
def quick_model(tmp_path: Path) -> Path:
    colour_model(tmp_path / "models/colours/1/model.onnx")
    return tmp_path / "models"


def test_small_images_are_answered_after_large_ones(tmp_path: Path, quick_model: Path) -> None:
    """Item 5: on an idle server, with 0.3 s, after 20 large pictures of another caller."""
    large = picture(size=(5000, 4000))
    flags = ["--model-repository", str(quick_model), "--workers", "1"]
    with started(tmp_path, *flags) as server, client(server) as first, client(server) as second:
        for _ in range(20):
            first.infer(large, timeout=60)
        outcomes = Counter(_outcome(second, 0.3) for _ in range(20))
    assert outcomes["OK"] >= 16, outcomes  # a busy machine may be slow at times
    assert outcomes.keys() <= {"OK", "DEADLINE_EXCEEDED"}, "none is refused for what is known"


def _outcome(made: InferenceStub, timeout: float) -> str:
    try:
        made.infer(picture(), timeout=timeout)
    except grpc.RpcError as error:
        return from_rpc_error(error).code.name
    return "OK"
