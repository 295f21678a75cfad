"""What a caller may see of what is logged. Pure."""

from dataclasses import replace

import grpc

from ingest_service.store.protocol import Filter
from servicekit.auth.caller import Caller
from servicekit.errors import SightlineError, invalid


def visible(which: Filter, caller: Caller) -> Filter:
    """Return the filter, narrowed to the caller's devices.

    Without devices in it, it is about all devices that the caller's credential names. Those of a
    prefix cannot be listed, so who has one must name devices.

    Raises:
        SightlineError: PERMISSION_DENIED, `DEVICE_NOT_ALLOWED`, a device is not the caller's or it
            has none; INVALID_ARGUMENT, `DEVICE_FILTER_REQUIRED`, it must name devices.
    """
    for device_id in which.device_ids:
        caller.require_device(device_id)
    if which.device_ids or caller.devices.everything:
        return which
    if caller.devices.prefixes:
        raise invalid(
            "filter.device_ids",
            f"must name devices, because caller {caller.name} may only see some",
            reason="DEVICE_FILTER_REQUIRED",
        )
    if not caller.devices.names:  # an empty filter would show everything
        raise SightlineError(
            grpc.StatusCode.PERMISSION_DENIED,
            "DEVICE_NOT_ALLOWED",
            f"caller {caller.name} has no device to read about",
        )
    return replace(which, device_ids=tuple(sorted(caller.devices.names)))
