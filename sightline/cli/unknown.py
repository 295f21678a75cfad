"""A note on devices that a command names and the server does not know, such as mistyped ones."""

from collections.abc import Collection, Iterable

import grpc
import typer

from edge.channel import Endpoint
from servicekit.names import readable
from sightline.ingest.v1 import ingest_service_pb2_grpc, reads_pb2

_MOST = 1000
"""Maximum number of devices in one question."""


def note_unknown(
    service: Endpoint, named: Collection[str] | None, found: Iterable[str], timeout: float
) -> None:
    """Print on stderr which of the named devices the server does not know.

    Nothing is printed if the server cannot say, as one of an earlier version.

    Args:
        service: the ingest service.
        named: the devices that the command names; None: every device is meant.
        found: those that its answer holds, for which the server is not asked again.
        timeout: seconds to wait for the server.
    """
    missing = list(dict.fromkeys(named or ()).keys() - set(found))[:_MOST]
    if not missing:
        return
    request = reads_pb2.ListDevicesRequest(device_ids=missing, page_size=_MOST)
    with service.channel() as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        try:
            answer = stub.ListDevices(request, timeout=timeout, metadata=service.metadata)
        except grpc.RpcError:
            return
    known = {device.device_id for device in answer.devices}
    for name in sorted(set(missing) - known):
        typer.echo(
            f"the server knows no device {readable(name)!r}: `sightline devices` lists those that"
            " it knows",
            err=True,
        )
