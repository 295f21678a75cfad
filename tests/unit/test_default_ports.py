"""Section 0: the tests of the documentation meet no other service at the default ports."""

import pytest

from tests.default_ports import INFERENCE, INGEST, moved
from tests.integration.cli.terminal import environment


def test_services_are_moved_from_the_default_ports() -> None:
    assert moved(f"a {INGEST} b", ingest="h:1") == "a h:1 b"
    assert moved(f"{INGEST} {INFERENCE}", ingest="h:1", inference="h:2") == "h:1 h:2"


@pytest.mark.parametrize("text", [INGEST, INFERENCE, "localhost:50051", "[::1]:50052"])
def test_what_would_go_to_a_default_port_is_told_in_a_sentence(text: str) -> None:
    with pytest.raises(AssertionError, match=r"goes to the default port 5005[12], where another"):
        moved(f"grpcurl {text} list")


def test_a_page_that_no_longer_names_what_is_moved_is_told() -> None:
    with pytest.raises(AssertionError, match="is not in"):
        moved("nothing", ingest="h:1")


def test_commands_reach_nobody_unless_they_are_told_whom() -> None:
    targets = [environment()[f"SIGHTLINE_EDGE_{name}_TARGET"] for name in ("INGEST", "INFERENCE")]
    assert targets == ["127.0.0.1:1"] * 2
    assert environment(ingest_target="h:1")["SIGHTLINE_EDGE_INGEST_TARGET"] == "h:1"
