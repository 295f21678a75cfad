"""Attributes of an image that its caller passes, and the prediction made from them."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from edge.cloud.messages import check_context, trace_id_of
from edge.decide.answer import Answer
from edge.records import Prediction


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """The attributes of a prediction that do not come from the answer."""

    image_id: str
    captured_at: float
    """Unix seconds."""
    labels: Mapping[str, str]
    """Labels of the prediction, those of the context included."""
    context: Mapping[str, str]
    """Labels that the service gets as well."""
    traceparent: str
    """W3C traceparent; empty: none."""

    def prediction(self, answer: Answer, *, is_defect: bool | None) -> Prediction:
        """Return the prediction to log for an answer."""
        return Prediction(
            self.image_id,
            answer.model_name,
            model_version=answer.model_version,
            image_width=answer.image_width,
            image_height=answer.image_height,
            source=answer.source,
            cloud_reason=answer.cloud_reason,
            captured_at=self.captured_at,
            inference_seconds=answer.attempt.seconds,
            detections=answer.detections,
            defect_detected=is_defect,
            labels=self.labels,
            trace_id=trace_id_of(self.traceparent),
        )


def image_entry(
    image_id: str | None = None,
    captured_at: float | None = None,
    labels: Mapping[str, str] | None = None,
    context: Mapping[str, str] | None = None,
    traceparent: str = "",
) -> ImageEntry:
    """Return the entry of an image, before it is processed.

    Args:
        image_id: name of the image; None or empty: a new UUID.
        captured_at: capture time in Unix seconds; None: now.
        labels: labels of the prediction; a label replaces one of the context with the same key.
        context: labels of the prediction and of the request to the service.
        traceparent: W3C traceparent; empty: none.

    Raises:
        SightlineError: INVALID_ARGUMENT: the context or the traceparent is malformed.
        ValueError: the name, the time or the labels cannot be logged.
    """
    checked = check_context(context or {})
    entry = ImageEntry(
        image_id=image_id or str(uuid.uuid4()),
        captured_at=time.time() if captured_at is None else captured_at,
        labels={**checked, **(labels or {})},
        context=checked,
        traceparent=traceparent,
    )
    trace_id_of(traceparent)
    if image_id or entry.labels or captured_at is not None:
        Prediction(entry.image_id, "model", captured_at=entry.captured_at, labels=entry.labels)
    return entry
