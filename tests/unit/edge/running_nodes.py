"""A node with a scripted device, for tests."""

import asyncio
from typing import Any

import pytest
from sightline.types.v1 import prediction_pb2

from edge.decide.answer import Answer
from edge.node import EdgeNode
from tests.fakes.ingest import FakeIngest


def logged(node: EdgeNode, ingest: FakeIngest) -> list[prediction_pb2.Prediction]:
    """Return the stored predictions in the order of logging."""
    assert node.logger.flush(10, until="committed")
    stored = ingest.only()
    return [stored.predictions[sequence] for sequence in sorted(stored.predictions)]


def _process(node: EdgeNode, *arguments: Any, **options: Any) -> Answer:
    return node.process(*arguments, **options)


def _aprocess(node: EdgeNode, *arguments: Any, **options: Any) -> Answer:
    return asyncio.run(node.aprocess(*arguments, **options))


@pytest.fixture(params=[_process, _aprocess], ids=["threads", "asyncio"])
def process(request: pytest.FixtureRequest) -> Any:
    return request.param
