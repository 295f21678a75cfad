"""Workers, and what they are given."""

from collections.abc import AsyncIterator

import pytest

from inference_service.serving.admission import Admission
from inference_service.serving.workers import Workers
from tests.unit.inference_service.serving.doubler import Doubler, Heard


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def workers(heard: Heard) -> AsyncIterator[Workers]:
    made = Workers(Admission(workers=1, queue_size=4), heard)
    yield made
    made.close()
    assert made._members == {}
    assert made._admission.depth == made._admission.running == 0


@pytest.fixture
def model() -> Doubler:
    return Doubler()
