"""Tells the log line and the span of a call which model it ran, and what each stage took."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from inference_service.models.engine import Model
from inference_service.serving.work import Ran
from servicekit.errors import SightlineError
from servicekit.telemetry import call_notes, tracing

_Interval: TypeAlias = tuple[float, float]
"""Begin and end on the pipeline's clock, s."""


def note_model(model: Model) -> None:
    """Note which model the call asks for."""
    call_notes.note(model=model.name, version=model.version)


def note_key(key: str, *, replayed: bool) -> None:
    """Note how the idempotency key of the call begins, and whether its answer was there before.

    The beginning is enough to find the other calls of the same key.
    """
    call_notes.note(idempotency_key=key[:8], replayed=replayed)


def note_stages(ran: Sequence[Ran[Any]], admitted: float) -> None:
    """Note what the stages of a call took, and give each a span if the call is traced.

    `queue_ms` is the longest wait of a member, `batch` the largest run that one was part of. The
    other stages are summed over the members, which are worked on side by side. The span of a stage
    is from when the first member came into it till the last one left it.

    Args:
        ran: the members, at least one.
        admitted: when they were admitted, on `time.monotonic`, s.
    """
    batch = max(each.batch for each in ran)
    call_notes.note(
        members=len(ran),
        batch=batch,
        queue_ms=_ms(max(each.waited for each in ran)),
        decode_ms=_ms(sum(each.decode for each in ran)),
        infer_ms=_ms(sum(each.infer for each in ran)),
        post_ms=_ms(sum(each.post for each in ran)),
    )
    if not tracing.traced():
        return
    stages: dict[str, list[_Interval]] = {}
    for each in ran:
        for name, interval in _intervals(each, admitted):
            stages.setdefault(name, []).append(interval)
    for name, intervals in stages.items():
        begun, ended = min(b for b, _ in intervals), max(e for _, e in intervals)
        tracing.stage(name, begun, ended, members=len(intervals), batch=batch)


def _intervals(ran: Ran[Any], admitted: float) -> list[tuple[str, _Interval]]:
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
