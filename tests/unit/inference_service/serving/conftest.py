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
    created = Workers(Admission(workers=1, queue_size=4), heard)
    yield created
    created.close()
    assert created._members == {}
    assert created._admission.depth == created._admission.running == 0


@pytest.fixture
def model() -> Doubler:
    return Doubler()
