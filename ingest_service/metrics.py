"""Figures of the ingest service itself; those of its calls are servicekit's."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

_CONFLICT_KINDS = ("content", "generation")


def conflict_counter(registry: CollectorRegistry) -> Callable[[str], None]:
    """Return what counts messages that were refused with `SEQUENCE_CONFLICT`.

    Args:
        registry: where the counter is registered, with every kind at 0.
    """
    counter = Counter(
        "sightline_ingest_sequence_conflicts_total",
        "Messages that claimed a sequence which was committed with another content",
        ("kind",),
        registry=registry,
    )
    by_kind = {kind: counter.labels(kind) for kind in _CONFLICT_KINDS}
    return lambda kind: by_kind[kind].inc()
