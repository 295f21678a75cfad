"""Comparison of the cloud model's labels with those of the device's model, without I/O."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import grpc

from edge.detect.base import Detector, DetectorResult
from servicekit.errors import SightlineError

DIFFER = "CLOUD_LABELS_DIFFER"
"""Reason of the error for an answer of a model with other labels than the device's."""
_MAX_SHOWN = 5


@dataclass(frozen=True)
class LabelRule:
    """The device's labels, and the comparison of other labels with them.

    Attributes:
        device: returns the labels of the device's model; empty: it does not report them.
        renamed: the device's names for labels of the cloud, by the cloud's names.
    """

    device: Callable[[], frozenset[str]]
    renamed: Mapping[str, str]

    def difference(self, labels: Iterable[str]) -> str:
        """Return how a model's labels differ from the device's; empty: they are the same.

        If labels are renamed, the cloud may lack some of the device's: whoever wrote the renaming
        has compared them.
        """
        device = self.device()
        cloud = {self.renamed.get(label, label) for label in labels}
        unknown = sorted(cloud - device)
        missing = [] if self.renamed else sorted(device - cloud)
        parts = [f"only the cloud has {_some(unknown)}"] if unknown else []
        parts += [f"only the device has {_some(missing)}"] if missing else []
        return ", ".join(parts)

    def answer_difference(self, result: DetectorResult) -> str:
        """Return the classes of an answer that the device lacks, as text; empty: there are none."""
        unknown = {detection.class_name for detection in result.detections} - self.device()
        return f"only the cloud has {_some(sorted(unknown))}" if unknown else ""


def labels_of(detector: Detector) -> frozenset[str]:
    """Return the labels of a device's model; empty: the detector does not report them."""
    return frozenset(getattr(detector, "labels", ()))


def rename(result: DetectorResult, renamed: Mapping[str, str]) -> DetectorResult:
    """Return an answer of the cloud with its classes renamed to the device's."""
    if not renamed:
        return result
    detections = tuple(
        replace(detection, class_name=renamed.get(detection.class_name, detection.class_name))
        for detection in result.detections
    )
    return replace(result, detections=detections)


def differ(model: str, difference: str) -> SightlineError:
    """Return the error for a model of the cloud whose answers are rejected."""
    return SightlineError(
        grpc.StatusCode.FAILED_PRECONDITION,
        DIFFER,
        f"the cloud's model {model} has other labels than the device's: {difference};"
        " set cloud_model, cloud_label_map or cloud_labels",
    )


def _some(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:_MAX_SHOWN])
    left = len(labels) - _MAX_SHOWN
    return f"{shown} and {left} more" if left > 0 else shown
