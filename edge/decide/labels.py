"""Comparison of the cloud model's labels with those of the device's model. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import grpc

from edge.detect.base import Detector, DetectorResult
from servicekit.errors import SightlineError

DIFFER = "CLOUD_LABELS_DIFFER"
"""Reason of the error for an answer of a model with other labels than the device's."""
_MOST_SHOWN = 5


@dataclass(frozen=True)
class LabelRule:
    """What the cloud's labels are held against.

    Attributes:
        device: returns the labels of the device's model; empty: it does not say.
        renamed: the device's name for labels of the cloud that are called otherwise.
    """

    device: Callable[[], frozenset[str]]
    renamed: Mapping[str, str]

    def difference(self, labels: Iterable[str]) -> str:
        """Return how a model's labels differ from the device's; empty: they do not.

        Where labels are renamed, the cloud may lack some: which ones it has was looked at.
        """
        device = self.device()
        cloud = {self.renamed.get(label, label) for label in labels}
        strange = sorted(cloud - device)
        missing = [] if self.renamed else sorted(device - cloud)
        parts = [f"the cloud alone has {_some(strange)}"] if strange else []
        parts += [f"the device alone has {_some(missing)}"] if missing else []
        return ", ".join(parts)

    def strangers(self, result: DetectorResult) -> str:
        """Return how the classes of an answer differ from the device's; empty: they do not."""
        strange = {found.class_name for found in result.detections} - self.device()
        return f"the cloud alone has {_some(sorted(strange))}" if strange else ""


def labels_of(detector: Detector) -> frozenset[str]:
    """Return the labels of a device's model; empty: the detector does not say."""
    return frozenset(getattr(detector, "labels", ()))


def rename(result: DetectorResult, renamed: Mapping[str, str]) -> DetectorResult:
    """Return an answer of the cloud with the device's names for its classes."""
    if not renamed:
        return result
    detections = tuple(
        replace(found, class_name=renamed.get(found.class_name, found.class_name))
        for found in result.detections
    )
    return replace(result, detections=detections)


def differ(model: str, difference: str) -> SightlineError:
    """Return the error for a model of the cloud whose answer is not taken."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        DIFFER,
        f"the cloud's model {model} has other labels than the device's: {difference};"
        " set cloud_model, cloud_label_map or cloud_labels",
    )


def _some(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:_MOST_SHOWN])
    left = len(labels) - _MOST_SHOWN
    return f"{shown} and {left} more" if left > 0 else shown
