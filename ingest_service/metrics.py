"""Metrics of the ingest service; servicekit has those of its calls."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

_CONFLICT_KINDS = ("content", "generation")


def conflict_counter(registry: CollectorRegistry) -> Callable[[str], None]:
    """Return a function that counts a message refused with `SEQUENCE_CONFLICT`, by kind.

    Args:
        registry: the registry of the counter; every kind starts at 0.
    """
    counter = Counter(
        "sightline_ingest_sequence_conflicts_total",
        "Messages that claimed a sequence which was committed with another content",
        ("kind",),
        registry=registry,
    )
    by_kind = {kind: counter.labels(kind) for kind in _CONFLICT_KINDS}
    return lambda kind: by_kind[kind].inc()
