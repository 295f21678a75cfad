"""Restriction of requests to the devices that a caller may read. Pure."""

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
    devices = visible_devices(filter_.device_ids, caller, "filter.device_ids")
    return filter_ if devices == filter_.device_ids else replace(filter_, device_ids=devices)


def visible_devices(device_ids: tuple[str, ...], caller: Caller, field: str) -> tuple[str, ...]:
    """Return the devices of a request, restricted to the caller's; empty: every device.

    Args:
        device_ids: the devices that the request names; empty: all.
        caller: who asks.
        field: the name of the field with the devices.

    Raises:
        SightlineError: see `visible`; DEVICE_FILTER_REQUIRED names the field.
    """
    for device_id in device_ids:
        caller.require_device(device_id)
    if device_ids or caller.devices.everything:
        return device_ids
    if caller.devices.prefixes:
        raise invalid(
            field,
            f"must name devices, because caller {caller.name} may read only some",
            reason="DEVICE_FILTER_REQUIRED",
        )
    if not caller.devices.names:  # an empty filter would match every device
        raise SightlineError(
            grpc.StatusCode.PERMISSION_DENIED,
            "DEVICE_NOT_ALLOWED",
            f"caller {caller.name} may not read any device",
        )
    return tuple(sorted(caller.devices.names))
