"""A certificate authority for one test."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Pair = tuple[bytes, bytes]  # certificate and private key, PEM


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """Signs certificates for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._sign("ca", self._key.public_key(), authority=True)

    def issue(
        self,
        common_name: str,
        *,
        address: str = "127.0.0.1",
        lasts: timedelta = timedelta(days=1),
    ) -> Pair:
        """Returns a certificate and its key.

        Args:
            common_name: `server`: with the address as a name.
            address: of the server.
            lasts: from now; below 0: it has ended.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        signed = self._sign(
            common_name, key.public_key(), authority=False, address=address, lasts=lasts
        )
        return signed, private

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        *,
        authority: bool,
        address: str = "",
        lasts: timedelta = timedelta(days=1),
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name("ca"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if name == "server":
            names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
