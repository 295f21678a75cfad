"""Windows of plausible capture times, by the clocks of the device and of the server.

Pure. `captured_at` comes from the device's clock, whose time is in the header of the stream. A time
is refused only if it is implausible by both clocks, so that a wrong clock of either the server or
the device does not reject good predictions.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ingest_service.store.protocol import StreamOpening

EARLIEST_CAPTURE = datetime(2000, 1, 1, tzinfo=UTC)
FUTURE_ALLOWANCE = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Limit: TypeAlias = "int | NDArray[np.int64]"


class CaptureWindow(NamedTuple):
    """A window of plausible capture times, us since 1970, both limits inclusive.

    Each limit is one number for all predictions, or an array with a number for each prediction.
    """

    earliest: Limit
    latest: Limit


def by_server(now: datetime) -> CaptureWindow:
    """Return the window by the server's clock, for devices that do not send their clock."""
    return CaptureWindow(to_us(EARLIEST_CAPTURE), to_us(now) + _us(FUTURE_ALLOWANCE))


def by_device(device_time: datetime, elapsed: timedelta) -> CaptureWindow:
    """Return the window by the device's clock.

    A device whose clock is before 2000 has lost its time, usually to 1970. The times of its
    predictions are just as wrong; the clock offset in the store corrects them.

    Args:
        device_time: the device's clock when it opened the stream.
        elapsed: time since then, >= 0.
    """
    earliest = _EPOCH if device_time < EARLIEST_CAPTURE else EARLIEST_CAPTURE
    return CaptureWindow(to_us(earliest), to_us(device_time) + _us(elapsed) + _us(FUTURE_ALLOWANCE))


def of_stream(opening: StreamOpening, now: datetime, steady: float | None) -> CaptureWindow:
    """Return the window for the predictions of a stream: times that are plausible by either clock.

    Args:
        opening: the opening of the stream.
        now: the server's wall clock.
        steady: the server's steady clock, s; None: take the elapsed time from the wall clock.
    """
    server = by_server(now)
    if opening.device_time is None:
        return server
    if steady is None or opening.opened_steady is None:
        elapsed = now - opening.opened_at
    else:
        elapsed = timedelta(seconds=steady - opening.opened_steady)
    device = by_device(opening.device_time, max(elapsed, timedelta()))
    return CaptureWindow(device.earliest, max(server.latest, device.latest))


def for_each(windows: Sequence[CaptureWindow], owner: NDArray[np.int64]) -> CaptureWindow:
    """Return the window of each prediction.

    Args:
        windows: the window of each message.
        owner: the index of the message of each prediction.
    """
    bounds = np.array(windows, dtype=np.int64).reshape(-1, 2)
    return CaptureWindow(bounds[owner, 0], bounds[owner, 1])


def to_us(time: datetime) -> int:
    """Return a time as us since 1970."""
    return _us(time - _EPOCH)


def _us(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
