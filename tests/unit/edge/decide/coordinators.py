"""Coordinators with scripted devices and real services, for the tests of the coordinator."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from edge.cloud.client import InferenceClient
from edge.decide.answer import Answer
from edge.decide.coordinator import InferenceCoordinator
from edge.decide.policy import Mode, Policy
from edge.detect.base import DetectorResult, Image
from edge.records import Box, Detection
from servicekit.errors import SightlineError
from tests.fakes.inference import Refuse

PIT = DetectorResult((Detection(0, "pit", 0.5, Box(0, 0, 4, 4)),), 64, 48, "tiny", "d1")
UNAVAILABLE = Refuse(SightlineError(grpc.StatusCode.UNAVAILABLE, "DRAINING", "draining"))
NOBODY = "127.0.0.1:1"
UNHURRIED = 8.0
"""Maximum duration of what a deadline below a second ends, on a machine that is busy, s."""


class Scripted:
    """A detector with a scripted result; `seen` has the images that it was called with."""

    name = "tiny"
    version = "d1"

    def __init__(self, does: Callable[[], DetectorResult] = lambda: PIT) -> None:
        self.does = does
        self.seen: list[Image] = []

    def detect(self, image: Image) -> DetectorResult:
        self.seen.append(image)
        return self.does()


class Hanging(Scripted):
    """A detector that blocks until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        super().__init__(self._wait)

    def _wait(self) -> DetectorResult:
        self.released.wait(30)
        return PIT


def failing(error: BaseException) -> Scripted:
    def fail() -> DetectorResult:
        raise error

    return Scripted(fail)


def policy(
    mode: Mode = Mode.AUTO, timeout: float = 5.0, reserve: float = 1.0, **more: Any
) -> Policy:
    # Tokens for as many retries as such short waits make.
    usual: dict[str, Any] = {"backoff": lambda n: 0.02, "retry_tokens": 1000}
    return Policy(mode=mode, timeout=timeout, cloud_reserve=reserve, **usual | more)


def _ask(coordinator: InferenceCoordinator, image: Image, **options: Any) -> Answer:
    return coordinator.ask(image, **options)


def _aask(coordinator: InferenceCoordinator, image: Image, **options: Any) -> Answer:
    return asyncio.run(coordinator.aask(image, **options))


@pytest.fixture(params=[_ask, _aask], ids=["threads", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    detector = Hanging()
    yield detector
    detector.released.set()


def new_coordinator(
    detector: Scripted | None, target: str, chosen: Policy | None = None, **options: Any
) -> InferenceCoordinator:
    return InferenceCoordinator(detector, InferenceClient(target), chosen or policy(), **options)
