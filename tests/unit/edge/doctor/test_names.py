import pytest

from edge.doctor.finding import Level
from edge.doctor.names import check_names
from edge.settings import EdgeSettings


@pytest.mark.parametrize(
    "name",
    [
        *(f"SIGHTLINE_EDGE_{field.upper()}" for field in EdgeSettings.model_fields),
        "SIGHTLINE_CONFIG",
        "SIGHTLINE_SECRETS_DIR",
        "SIGHTLINE_API_KEYS_FILE",
        "SIGHTLINE_INGEST_LISTEN",
        "SIGHTLINE_INFERENCE_LISTEN",
        "SIGHTLINE_EDGE_SERVICE_HOST",  # of a Kubernetes service called sightline-edge
        "SIGHTLINE_GATE_PORT_50051_TCP_ADDR",
        "SIGHTLINE_GATE_SERVICE_PORT_GRPC",
        "sightline_edge_mode",  # case does not matter
        "PATH",
    ],
)
def test_what_is_meant_is_not_complained_about(name: str) -> None:
    (finding,) = check_names({name: "tcp://10.0.0.1:50051"})
    assert finding.level is Level.OK


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SIGHTLINE_EGDE_API_KEY", "SIGHTLINE_EDGE_API_KEY"),
        ("SIGHTLINE_API_KEY_FILE", "SIGHTLINE_EDGE_API_KEY_FILE"),
        ("sightline_edg_mode", "SIGHTLINE_EDGE_MODE"),
    ],
)
def test_a_slip_of_the_pen_is_a_warning_with_what_was_meant(name: str, meant: str) -> None:
    (finding,) = check_names({name: "1", "HOME": "/"})
    assert finding.level is Level.WARNING
    assert name in finding.message
    assert meant in finding.action


def test_each_unknown_name_is_a_finding_of_its_own() -> None:
    findings = check_names({"SIGHTLINE_NONSENSE": "1", "SIGHTLINE_OTHER": "1"})
    assert [finding.level for finding in findings] == [Level.WARNING, Level.WARNING]
    assert all(finding.action for finding in findings)
