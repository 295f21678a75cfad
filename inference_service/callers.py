"""Who is calling."""

from collections.abc import Iterable

ANONYMOUS = "anonymous"


def authenticate(identities: Iterable[bytes] | None) -> str:
    """Returns the caller's name.

    Args:
        identities: the peer's identities as gRPC gives them: the names in the client certificate
            that mutual TLS has verified, best first. None or empty: the peer showed none.

    Returns:
        The first identity, or `ANONYMOUS`.
    """
    first = next(iter(identities or ()), b"")
    return first.decode(errors="replace") or ANONYMOUS
