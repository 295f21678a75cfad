"""Restriction of filters to the devices that a caller may read. Pure."""

from dataclasses import replace

import grpc

from ingest_service.store.protocol import Filter
from servicekit.auth.caller import Caller
from servicekit.errors import SightlineError, invalid


def visible(filter_: Filter, caller: Caller) -> Filter:
    """Return the filter, restricted to the caller's devices.

    A filter without devices is restricted to the devices that the caller's credential names.
    Devices with a common prefix cannot be listed, so a caller with a prefix must name devices.

    Raises:
        SightlineError: PERMISSION_DENIED, `DEVICE_NOT_ALLOWED`, the caller may not read a device or
            has no device; INVALID_ARGUMENT, `DEVICE_FILTER_REQUIRED`, the filter names no device.
    """
    for device_id in filter_.device_ids:
        caller.require_device(device_id)
    if filter_.device_ids or caller.devices.everything:
        return filter_
    if caller.devices.prefixes:
        raise invalid(
            "filter.device_ids",
            f"must name devices, because caller {caller.name} may read only some",
            reason="DEVICE_FILTER_REQUIRED",
        )
    if not caller.devices.names:  # an empty filter would match every device
        raise SightlineError(
            grpc.StatusCode.PERMISSION_DENIED,
            "DEVICE_NOT_ALLOWED",
            f"caller {caller.name} may not read any device",
        )
    return replace(filter_, device_ids=tuple(sorted(caller.devices.names)))
