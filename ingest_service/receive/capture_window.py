"""Which capture times are plausible, by the clocks of the device and of the server.

Pure. `captured_at` comes from the device's clock, and the header of its stream says what that clock
shows. A time is refused only where no clock bears it out: neither a server whose clock is wrong nor
a device whose clock is wrong loses what is good.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ingest_service.store.protocol import Opening

EARLIEST_CAPTURE = datetime(2000, 1, 1, tzinfo=UTC)
FUTURE_ALLOWANCE = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Bounds: TypeAlias = "int | NDArray[np.int64]"


class Window(NamedTuple):
    """Capture times that are plausible, us since 1970, both ends included.

    One number for all predictions, or an array with one for each.
    """

    earliest: Bounds
    latest: Bounds


def by_server(now: datetime) -> Window:
    """Return the window where the device does not say what its clock shows."""
    return Window(to_us(EARLIEST_CAPTURE), to_us(now) + _us(FUTURE_ALLOWANCE))


def by_device(device_time: datetime, elapsed: timedelta) -> Window:
    """Return the window by the device's clock.

    A device whose clock shows a time before 2000 has lost it, mostly to 1970, and so have its
    predictions; the offset in the store corrects them.

    Args:
        device_time: its clock when it opened the stream.
        elapsed: since then, >= 0.
    """
    earliest = _EPOCH if device_time < EARLIEST_CAPTURE else EARLIEST_CAPTURE
    return Window(to_us(earliest), to_us(device_time) + _us(elapsed) + _us(FUTURE_ALLOWANCE))


def of_stream(opening: Opening, now: datetime, steady: float | None) -> Window:
    """Return the window for what came on a stream: by either clock.

    Args:
        opening: of the stream.
        now: the server's wall clock.
        steady: the server's steady clock, s; None: only the wall clocks say what has passed.
    """
    server = by_server(now)
    if opening.device_time is None:
        return server
    if steady is None or opening.opened_steady is None:
        elapsed = now - opening.opened_at
    else:
        elapsed = timedelta(seconds=steady - opening.opened_steady)
    device = by_device(opening.device_time, max(elapsed, timedelta()))
    return Window(device.earliest, max(server.latest, device.latest))


def for_each(windows: Sequence[Window], owner: NDArray[np.int64]) -> Window:
    """Return the windows of predictions.

    Args:
        windows: of messages.
        owner: for each prediction, the index of its message.
    """
    bounds = np.array(windows, dtype=np.int64).reshape(-1, 2)
    return Window(bounds[owner, 0], bounds[owner, 1])


def to_us(time: datetime) -> int:
    """Return a time as us since 1970."""
    return _us(time - _EPOCH)


def _us(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
