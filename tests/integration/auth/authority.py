"""A certificate authority for one test."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Pair = tuple[bytes, bytes]  # certificate and private key, PEM


def _name(*common_names: str) -> x509.Name:
    # Not validated: an authority that signs nonsense is what some tests are about.
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in common_names]
    )


class Authority:
    """Signs certificates for one test."""

    def __init__(self, name: str = "ca") -> None:
        self._own_name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._sign([name], self._key.public_key(), authority=True)

    def issue(
        self,
        *common_names: str,
        address: str = "127.0.0.1",
        names: Sequence[x509.GeneralName] = (),
        lasts: timedelta = timedelta(days=1),
    ) -> Pair:
        """Return a certificate and its key.

        Args:
            common_names: of the subject; `server`: with the address as an alternative name.
            address: of the server.
            names: alternative names.
            lasts: from now; below 0: it has ended.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        if common_names == ("server",):
            names = [x509.IPAddress(IPv4Address(address))]
        signed = self._sign(common_names, key.public_key(), names=names, lasts=lasts)
        return signed, private

    def _sign(
        self,
        common_names: Sequence[str],
        key: ec.EllipticCurvePublicKey,
        *,
        authority: bool = False,
        names: Sequence[x509.GeneralName] = (),
        lasts: timedelta = timedelta(days=1),
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(*common_names))
            .issuer_name(_name(self._own_name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName(names)
            builder = builder.add_extension(alternatives, critical=not common_names)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
