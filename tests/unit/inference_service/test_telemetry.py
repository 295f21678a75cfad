import pytest
from prometheus_client import CollectorRegistry, generate_latest

from inference_service.serving import admission
from inference_service.telemetry import EXPIRED, IDEMPOTENCY, STAGES, Telemetry


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def telemetry(registry: CollectorRegistry) -> Telemetry:
    return Telemetry(registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"sightline_inference_{name}", labels)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_timed_by_model(
    telemetry: Telemetry, registry: CollectorRegistry, stage: str
) -> None:
    for seconds in (0.0004, 0.02, 31.0):
        telemetry.stage("plates", stage, seconds)
    series = {"model": "plates", "stage": stage}
    assert value(registry, "stage_seconds_count", **series) == 3
    assert value(registry, "stage_seconds_sum", **series) == pytest.approx(31.0204)
    assert value(registry, "stage_seconds_bucket", **series, le="0.0005") == 1
    assert value(registry, "stage_seconds_bucket", **series, le="30.0") == 2
    assert value(registry, "stage_seconds_count", model="other", stage=stage) is None


def test_a_stage_that_does_not_exist_is_refused(telemetry: Telemetry) -> None:
    with pytest.raises(ValueError, match="stage must be one of upload, queue"):
        telemetry.stage("plates", "lunch", 1.0)


def test_requests_and_runs(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    telemetry.total("plates", 0.3)
    for rows in (1, 8, 8, 300):
        telemetry.batch("plates", rows)
    assert value(registry, "request_seconds_sum", model="plates") == pytest.approx(0.3)
    assert value(registry, "batch_rows_bucket", model="plates", le="8.0") == 3
    assert value(registry, "batch_rows_sum", model="plates") == 317


@pytest.mark.parametrize(
    ("method", "metric", "label", "values"),
    [
        ("shed", "shed_total", "reason", sorted(admission.REASONS)),
        ("expired", "expired_total", "where", EXPIRED),
        ("idempotency", "idempotency_total", "event", IDEMPOTENCY),
    ],
)
def test_events_are_counted_from_nought(
    telemetry: Telemetry,
    registry: CollectorRegistry,
    method: str,
    metric: str,
    label: str,
    values: list[str],
) -> None:
    assert {value(registry, metric, **{label: label_value}) for label_value in values} == {0.0}
    for times, label_value in enumerate(values):
        for _ in range(times):
            getattr(telemetry, method)(label_value)
    samples = [value(registry, metric, **{label: label_value}) for label_value in values]
    assert samples == list(map(float, range(len(values))))
    with pytest.raises(KeyError):
        getattr(telemetry, method)("whatever a caller sends")


def test_gauges_are_read_when_they_are_scraped(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    waiting: list[int] = []
    telemetry.queue(lambda: len(waiting), lambda: 2)
    telemetry.idempotency_table(lambda: 7, lambda: 4096)
    assert value(registry, "queue_depth") == 0
    waiting += [1, 2, 3]
    assert value(registry, "queue_depth") == 3
    assert value(registry, "running") == 2
    assert value(registry, "idempotency_rows") == 7
    assert value(registry, "idempotency_bytes") == 4096


def test_models_that_are_unloaded_disappear(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    loaded = [("plates", "1", "CPUExecutionProvider"), ("plates", "2", "CUDAExecutionProvider")]
    telemetry.models(lambda: loaded)
    cuda = {"model": "plates", "version": "2", "provider": "CUDAExecutionProvider"}
    assert value(registry, "model_info", **cuda) == 1
    del loaded[1]
    assert value(registry, "model_info", **cuda) is None
    assert b'version="1"' in generate_latest(registry)


def test_versions_that_cannot_be_loaded(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    telemetry.load_failed("plates")
    assert value(registry, "model_load_failures_total", model="plates") == 1


def test_a_figure_that_cannot_be_read_does_not_cost_the_others(
    telemetry: Telemetry, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> float:
        raise OSError("disk is gone")

    def no_models() -> list[tuple[str, str, str]]:
        raise RuntimeError("changed during iteration")

    telemetry.idempotency_table(broken, lambda: 5)
    telemetry.models(no_models)
    telemetry.total("plates", 0.3)
    text = generate_latest(registry).decode()
    assert "sightline_inference_idempotency_rows NaN" in text
    assert "sightline_inference_idempotency_bytes 5.0" in text
    assert 'sightline_inference_request_seconds_count{model="plates"} 1.0' in text
    assert "disk is gone" in caplog.text
