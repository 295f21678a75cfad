"""Model and stage durations of a call, for its log line and its span."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from sightline.inference.v1 import inference_service_pb2

from inference_service.models.engine import Model
from inference_service.serving.work import MemberResult
from servicekit.errors import SightlineError
from servicekit.telemetry import call_notes, tracing

_Interval: TypeAlias = tuple[float, float]
"""Start and end on the pipeline's clock, s."""


def note_model(model: Model) -> None:
    """Add the requested model to the call's log line."""
    call_notes.note(model=model.name, version=model.version)


def note_origin(request: inference_service_pb2.InferRequest) -> None:
    """Add the context and the client of a valid request to the call's log line and its span.

    A label `plant` becomes the fact `context.plant`, so that no label replaces another fact.
    """
    facts: dict[str, call_notes.Fact] = {
        f"context.{key}": value for key, value in request.context.items()
    }
    for name in ("name", "version", "platform"):
        if value := getattr(request.client, name):
            facts[f"client.{name}"] = value
    call_notes.note(**facts)


def note_key(key: str, *, replayed: bool) -> None:
    """Add the start of the idempotency key, and whether the response was replayed.

    The first 8 characters are enough to find the other calls with the same key.
    """
    call_notes.note(idempotency_key=key[:8], replayed=replayed)


def note_stages(ran: Sequence[MemberResult[Any]], admitted: float) -> None:
    """Add the stage durations to the call's log line, and a span per stage if it is traced.

    `queue_ms` is the longest wait of a member, `batch` the largest run with one of the members. The
    other stages are sums over the members, which are processed in parallel. The span of a stage
    starts when the first member enters it and ends when the last one leaves it.

    Args:
        ran: the members, at least one.
        admitted: time of their admission, on `time.monotonic`, s.
    """
    batch = max(member.batch for member in ran)
    call_notes.note(
        members=len(ran),
        batch=batch,
        queue_ms=_ms(max(member.waited for member in ran)),
        decode_ms=_ms(sum(member.decode for member in ran)),
        infer_ms=_ms(sum(member.infer for member in ran)),
        post_ms=_ms(sum(member.post for member in ran)),
    )
    if not tracing.traced():
        return
    stages: dict[str, list[_Interval]] = {}
    for member in ran:
        for name, interval in _intervals(member, admitted):
            stages.setdefault(name, []).append(interval)
    for name, intervals in stages.items():
        started, ended = min(s for s, _ in intervals), max(e for _, e in intervals)
        tracing.stage(name, started, ended, members=len(intervals), batch=batch)


def _intervals(ran: MemberResult[Any], admitted: float) -> list[tuple[str, _Interval]]:
    started = admitted + ran.waited
    intervals = [
        ("queue", (admitted, started)),
        ("decode", (started, started + ran.decode)),
    ]
    if not isinstance(ran.result, SightlineError):
        inferred = ran.ended - ran.post
        intervals += [
            ("infer", (inferred - ran.infer, inferred)),
            ("post", (inferred, ran.ended)),
        ]
    return intervals


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
