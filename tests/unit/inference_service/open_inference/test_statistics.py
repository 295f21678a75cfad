"""Statistics of requests, as perf_analyzer reads them."""

from dataclasses import replace

import pytest
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.models.engine import Model
from inference_service.open_inference.statistics import Statistics
from inference_service.open_inference.tensors import Tensor
from inference_service.serving.work import MemberResult
from tests.unit.inference_service.open_inference.networks import loaded, network

SECOND = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return loaded(network(tmp_path_factory.mktemp("two") / "model.onnx"))


def ran(batch: int = 1) -> MemberResult[list[Tensor]]:
    return MemberResult([], waited=1.0, decode=2.0, infer=4.0, post=8.0, batch=batch)


def test_a_model_that_did_nothing(model: Model) -> None:
    (message,) = Statistics().message([model]).model_stats
    assert (message.name, message.version) == ("two", "1")
    assert (message.last_inference, message.inference_count, message.execution_count) == (0, 0, 0)
    assert message.inference_stats.success == oip.StatisticDuration(count=0, ns=0)


def test_requests_are_counted_with_their_stages(model: Model) -> None:
    statistics = Statistics()
    statistics.answered(model, [ran(), ran()], rows=2, seconds=20.0, now=100.0)
    statistics.failed(model, seconds=0.5, now=101.25)
    (message,) = statistics.message([model]).model_stats
    assert (message.last_inference, message.inference_count, message.execution_count) == (
        101_250,
        2,
        2,
    )
    stats = message.inference_stats
    assert stats.success == oip.StatisticDuration(count=1, ns=20 * SECOND)
    assert stats.fail == oip.StatisticDuration(count=1, ns=SECOND // 2)
    assert stats.queue == oip.StatisticDuration(count=1, ns=1 * SECOND)
    assert stats.compute_input == oip.StatisticDuration(count=1, ns=4 * SECOND)
    assert stats.compute_infer == oip.StatisticDuration(count=1, ns=8 * SECOND)
    assert stats.compute_output == oip.StatisticDuration(count=1, ns=16 * SECOND)


def test_a_run_that_requests_share_is_one_run(model: Model) -> None:
    statistics = Statistics()
    for _ in range(3):
        statistics.answered(model, [ran(batch=3)], rows=1, seconds=9.0, now=1.0)
    (message,) = statistics.message([model]).model_stats
    assert (message.inference_count, message.execution_count) == (3, 1)
    assert message.inference_stats.compute_infer == oip.StatisticDuration(count=3, ns=4 * SECOND)


def test_versions_are_counted_apart(model: Model) -> None:
    other = replace(model, version="2")
    statistics = Statistics()
    statistics.answered(other, [ran()], rows=1, seconds=9.0, now=1.0)
    counts = [each.inference_count for each in statistics.message([model, other]).model_stats]
    assert counts == [0, 1]
