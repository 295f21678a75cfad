"""The owner of a certificate that mutual TLS has verified. Pure."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

from servicekit.auth.caller import (
    ALL_DEVICES,
    ALL_SCOPES,
    MAX_NAME_BYTES,
    Caller,
    Devices,
    Proof,
    is_name,
    unauthenticated,
)

_REMEMBERED = 4096  # certificates; reading one takes longer than a small call
_NO_TEXT = frozenset({"Cc", "Cf", "Zl", "Zp"})  # control, formatting, line and paragraph breaks

_UNREADABLE = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//)?[^/].*")


class NamelessError(ValueError):
    """A certificate without a valid name. The message states the rule."""


def certified(auth_context: Mapping[str, Iterable[bytes]], *, is_device: bool) -> Caller:
    """Return the caller that the client's certificate names, by the rules of `name_in`.

    The caller gets all default scopes; a device gets them only for the device of its name.

    Args:
        auth_context: gRPC's data about the peer. Only the certificate itself is read: gRPC cuts a
            common name at a NUL byte, so a part of it would pass for the whole.
        is_device: whether the name is a device's; else it may speak for every device.

    Raises:
        SightlineError: UNAUTHENTICATED, `CERTIFICATE_NAMELESS`; it has no name, or a malformed one.
    """
    pem = next(iter(auth_context.get("x509_pem_cert", ())), b"")
    try:
        name = name_in(pem)
    except NamelessError as error:
        raise unauthenticated("CERTIFICATE_NAMELESS", str(error)) from error
    devices = Devices.only(name) if is_device else ALL_DEVICES
    return Caller(name, Proof.MTLS, devices, ALL_SCOPES)


@lru_cache(_REMEMBERED)
def name_in(pem: bytes) -> str:
    """Return the name of a certificate's owner.

    The name is the first DNS name; if there is none, the first common name; if there is neither,
    the URI, of which there must be exactly one (as in SPIFFE). The first kind that exists decides:
    a malformed name is refused and not skipped, so that two readers never find different owners.

    Raises:
        NamelessError: it cannot be read, has none of these names, several URIs, or a malformed one.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        dns, uris = _alternatives(certificate)
        common = [
            str(attribute.value)
            for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
    except _UNREADABLE as error:
        raise NamelessError(f"the certificate's names cannot be read: {error}") from error
    if dns:
        return _well_formed("DNS name", dns[0])
    if common:
        return _well_formed("common name", common[0])
    if len(uris) == 1:
        return _uri(uris[0])
    count = f"it has {len(uris)} URIs" if uris else "it has none"
    raise NamelessError(f"the certificate must have a DNS name, a common name or one URI ({count})")


def _alternatives(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Return the DNS names and the URIs among the subject's alternative names."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return [], []
    names = extension.value
    return (
        names.get_values_for_type(x509.DNSName),
        names.get_values_for_type(x509.UniformResourceIdentifier),
    )


def _uri(text: str) -> str:
    name = _well_formed("URI", text)
    if " " in name or not _URI.fullmatch(name):
        raise NamelessError(
            "the certificate's URI must be one such as spiffe://fleet.example/gate-1"
            f" (got {name!r})"
        )
    return name


def _well_formed(kind: str, name: str) -> str:
    """Return the name.

    Raises:
        NamelessError: it is empty, too long, padded with blanks, or has control
            characters: a reader that stops at one of them would see another owner.
    """
    plain = name == name.strip() and not any(unicodedata.category(c) in _NO_TEXT for c in name)
    if not plain or not is_name(name):
        raise NamelessError(
            f"the certificate's {kind} must be 1 to {MAX_NAME_BYTES} bytes, without control"
            f" characters and without blanks at its ends (got {name[:MAX_NAME_BYTES]!r})"
        )
    return name
