"""Predictions whose capture time is missing or implausibly early, and times that replace it.

Pure. A device without a battery for its clock starts in 1970. If it does not send its clock, or has
set it before it sends what it logged, nothing tells when these predictions were captured.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest_service.receive.capture_window import CaptureWindow, Limit

DEVICE_TIME_LABEL = "sightline.device_captured_at"
"""Label of a prediction whose `captured_at` was replaced: the device's time, `none` if it sent
none."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def undated(predictions: pa.StructArray, window: CaptureWindow) -> NDArray[np.bool_]:
    """Return a mask of the predictions without a capture time, or with one before the window.

    Args:
        predictions: the column of `sightline.types.v1.Prediction` from a decoder.
        window: the plausible capture times.
    """
    captured = predictions.field("captured_at")
    times: NDArray[np.int64] = pc.fill_null(captured.view(pa.int64()), 0).to_numpy()
    early: NDArray[np.bool_] = times < window.earliest
    missing: NDArray[np.bool_] = captured.is_null().to_numpy(zero_copy_only=False)
    return early | missing


def implausible(predictions: pa.StructArray, window: CaptureWindow) -> NDArray[np.bool_]:
    """Return a mask of the predictions with a capture time outside of the window."""
    captured = predictions.field("captured_at")
    times: NDArray[np.int64] = pc.fill_null(captured.view(pa.int64()), 0).to_numpy()
    outside: NDArray[np.bool_] = (times < window.earliest) | (times > window.latest)
    present: NDArray[np.bool_] = captured.is_valid().to_numpy(zero_copy_only=False)
    return outside & present


def redated(predictions: pa.StructArray, rows: NDArray[np.bool_], time: Limit) -> pa.StructArray:
    """Return the predictions with other capture times.

    Args:
        predictions: as for `undated`.
        rows: mask of the predictions to change.
        time: their new time, us since 1970: one for all, or one for each prediction.
    """
    captured = predictions.field("captured_at")
    times = np.where(rows, time, pc.fill_null(captured.view(pa.int64()), 0).to_numpy())
    missing = captured.is_null().to_numpy(zero_copy_only=False) & ~rows
    return _with(predictions, "captured_at", pa.array(times, mask=missing).view(captured.type))


def labelled(
    predictions: pa.StructArray, rows: NDArray[np.bool_], before: pa.StructArray
) -> pa.StructArray:
    """Return the predictions with the label `DEVICE_TIME_LABEL`, after their rules are checked.

    Args:
        predictions: as for `undated`.
        rows: mask of the predictions whose time was replaced.
        before: the same predictions with the device's times.
    """
    labels = predictions.field("labels")
    texts = labels.to_pylist()
    captured = before.field("captured_at").view(pa.int64()).to_pylist()
    for row in np.flatnonzero(rows):
        others = [pair for pair in texts[row] or () if pair[0] != DEVICE_TIME_LABEL]
        texts[row] = [*others, (DEVICE_TIME_LABEL, _text(captured[row]))]
    return _with(predictions, "labels", pa.array(texts, labels.type))


def _text(us: int | None) -> str:
    if us is None:
        return "none"
    try:
        return (_EPOCH + timedelta(microseconds=us)).isoformat()
    except OverflowError:  # not a year of 1 to 9999
        return f"{us} us since 1970"


def _with(predictions: pa.StructArray, name: str, column: pa.Array) -> pa.StructArray:
    """Return the predictions with another column in place of one."""
    fields = list(predictions.type)
    columns = [column if field.name == name else predictions.field(field.name) for field in fields]
    return pa.StructArray.from_arrays(columns, fields=fields)
