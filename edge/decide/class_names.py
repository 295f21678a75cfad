"""Check of the class names in a node's settings against the labels of the device's model. Pure."""

from collections.abc import Collection, Iterable, Mapping

from servicekit.settings import did_you_mean

TAKE_OTHERS = "if only the cloud's model has the class, set cloud_labels to any"
"""The remedy for a class in the settings that is no mistake."""


def unknown_classes(
    labels: Collection[str],
    defect_classes: Iterable[str],
    renamed: Mapping[str, str],
) -> str:
    """Return which class names in the settings the device's model does not have; empty: none.

    Args:
        labels: of the device's model; empty: not known, so nothing is checked.
        defect_classes: classes that are defects.
        renamed: the device's names for classes of the cloud, by the cloud's names.
    """
    named = [("defect_classes", name) for name in defect_classes]
    named += [("cloud_label_map", name) for name in renamed.values()]
    return "; ".join(
        f"{setting}: the device's model has no class {name!r}"
        f"{did_you_mean(name, labels) or _list(labels)}"
        for setting, name in named
        if labels and name not in labels
    )


def unknown_renamed(labels: Collection[str], renamed: Mapping[str, str]) -> str:
    """Return which classes to rename the cloud's model does not have; empty: none.

    Args:
        labels: of the cloud's model; empty: not known, so nothing is checked.
        renamed: the device's names for classes of the cloud, by the cloud's names.
    """
    return "; ".join(
        f"cloud_label_map: the cloud's model has no class {name!r}"
        f"{did_you_mean(name, labels) or _list(labels)}"
        for name in renamed
        if labels and name not in labels
    )


def _list(labels: Iterable[str]) -> str:
    shown = sorted(labels)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return f" (it has {', '.join(shown[:10])}{more})"
