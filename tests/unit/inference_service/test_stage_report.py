from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from inference_service.models.engine import Model
from inference_service.serving.work import MemberResult
from inference_service.stage_report import note_key, note_model, note_stages
from servicekit.errors import SightlineError
from servicekit.telemetry import call_notes, tracing
from servicekit.telemetry.call_notes import Fact

BAD = SightlineError(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNREADABLE", "no picture")


class Stages:
    """A span that keeps what it is told."""

    def __init__(self) -> None:
        self.reported: dict[str, tuple[float, float, dict[str, Fact]]] = {}

    def stage(self, name: str, begun: float, ended: float, facts: dict[str, Fact]) -> None:
        assert name not in self.reported
        self.reported[name] = (begun, ended, facts)


def ran(result: Any = "seen", **times: float) -> MemberResult[Any]:
    return MemberResult(result, **times)  # type: ignore[arg-type] # batch is a whole number among them


async def test_stages_of_several_members_are_told_together() -> None:
    notes, span = call_notes.begin(), Stages()
    tracing.set_span(span)
    note_stages(
        [
            ran(waited=1.0, decode=0.5, infer=2.0, post=0.25, batch=2, ended=104.0),
            ran(waited=1.5, decode=1.0, infer=2.0, post=0.5, batch=4, ended=104.75),
            ran(BAD, waited=0.5, decode=0.125),
        ],
        admitted=100.0,
    )
    assert notes == {
        "members": 3,
        "batch": 4,
        "queue_ms": 1500.0,
        "decode_ms": 1625.0,
        "infer_ms": 4000.0,
        "post_ms": 750.0,
    }
    assert span.reported == {
        "queue": (100.0, 101.5, {"members": 3, "batch": 4}),
        "decode": (100.5, 102.5, {"members": 3, "batch": 4}),
        "infer": (101.75, 104.25, {"members": 2, "batch": 4}),
        "post": (103.75, 104.75, {"members": 2, "batch": 4}),
    }


async def test_without_a_span_only_the_log_is_told() -> None:
    notes = call_notes.begin()
    note_stages([ran(BAD, waited=0.5)], admitted=100.0)
    assert notes["queue_ms"] == 500.0


async def test_nothing_is_kept_where_nobody_wants_to_know() -> None:
    note_stages([ran(waited=0.5, ended=1.0)], admitted=0.0)
    assert call_notes.begin() == {}


async def test_which_model_and_which_key() -> None:
    notes = call_notes.begin()
    note_model(cast("Model", SimpleNamespace(name="plates", version="2")))
    note_key("0123456789abcdef", replayed=True)
    assert notes == {
        "model": "plates",
        "version": "2",
        "idempotency_key": "01234567",
        "replayed": True,
    }


@pytest.mark.parametrize("key", ["", "short"])
async def test_short_keys(key: str) -> None:
    notes = call_notes.begin()
    note_key(key, replayed=False)
    assert notes["idempotency_key"] == key
