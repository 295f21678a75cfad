"""The certificate that mutual TLS has verified: whose it is. Pure."""

from collections.abc import Iterable, Mapping

from servicekit.auth.caller import (
    ALL_DEVICES,
    ALL_SCOPES,
    Caller,
    Devices,
    Proof,
    unauthenticated,
)


def certified(auth_context: Mapping[str, Iterable[bytes]], *, is_device: bool) -> Caller:
    """Returns who the client's certificate names.

    The name is its first DNS name, or its common name if it has none. It may do everything, as a
    device only for the device of its name.

    Args:
        auth_context: what gRPC knows of the peer.
        is_device: whether the name is a device's; else it may speak for every device.

    Raises:
        SightlineError: UNAUTHENTICATED; the certificate has neither name.
    """
    for key in ("peer_dns", "x509_common_name"):
        for value in auth_context.get(key, ()):
            name = value.decode(errors="replace")
            devices = Devices.only(name) if is_device else ALL_DEVICES
            return Caller(name, Proof.MTLS, devices, ALL_SCOPES)
    raise unauthenticated(
        "CERTIFICATE_NAMELESS", "the certificate must have a DNS name or a common name"
    )
