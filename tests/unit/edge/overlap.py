"""Overlap of boxes."""

from edge.records import Box


def overlap(one: Box | None, other: Box | None) -> float:
    """Intersection over union, in [0, 1]."""
    assert one is not None
    assert other is not None
    across = min(one.x_max, other.x_max) - max(one.x_min, other.x_min)
    down = min(one.y_max, other.y_max) - max(one.y_min, other.y_min)
    shared = max(across, 0) * max(down, 0)
    return shared / (_area(one) + _area(other) - shared)


def _area(box: Box) -> float:
    return (box.x_max - box.x_min) * (box.y_max - box.y_min)
