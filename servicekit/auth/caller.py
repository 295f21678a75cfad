"""The caller of a call and its permissions, in a context variable that handlers read."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

import grpc

from servicekit.addresses import is_local_peer
from servicekit.errors import SightlineError

MAX_NAME_BYTES = 256


class Proof(StrEnum):
    """The kind of credential that authenticated a caller."""

    ANONYMOUS = "anonymous"
    API_KEY = "api_key"
    JWT = "jwt"
    MTLS = "mtls"


class Scope(StrEnum):
    """A permission of a caller."""

    LOG = "log"
    """Log predictions, and read the committed position."""
    READ = "read"
    """Read what is logged."""
    INFER = "infer"
    """Send images to the inference service."""
    ADMIN = "admin"
    """Copy the whole database. It is granted only by name."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that a caller may log and read as."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    """Every device whose name begins with one of these; the empty one: every device."""

    @classmethod
    def parse(cls, patterns: Iterable[str]) -> Self:
        """Return the devices of exact names, and of `prefix*` for all names that begin so.

        Raises:
            ValueError: a pattern is empty, too long, or has its `*` elsewhere than at its end.
        """
        names, prefixes = set(), set()
        for pattern in patterns:
            if not 1 <= len(pattern.encode()) <= MAX_NAME_BYTES:
                raise ValueError(f"must be 1 to {MAX_NAME_BYTES} bytes (got {pattern!r})")
            if "*" in pattern[:-1]:
                raise ValueError(f"may have one *, at its end (got {pattern!r})")
            if pattern.endswith("*"):
                prefixes.add(pattern[:-1])
            else:
                names.add(pattern)
        return cls(frozenset(names), tuple(sorted(prefixes)))

    @classmethod
    def only(cls, name: str) -> Self:
        """Return the one device of this name, which may hold any character."""
        return cls(frozenset([name]))

    def __contains__(self, device_id: str) -> bool:
        return device_id in self.names or device_id.startswith(self.prefixes)

    @property
    def everything(self) -> bool:
        """True if every device is included."""
        return "" in self.prefixes


ALL_DEVICES = Devices(prefixes=("",))
ALL_SCOPES = frozenset(Scope) - {Scope.ADMIN}
"""The scopes that are granted by default."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    name: str
    proof: Proof
    devices: Devices
    scopes: frozenset[Scope]
    connection: str = field(default="", compare=False)
    """Address of the other end, as gRPC writes it; only of callers without a credential."""

    @property
    def identity(self) -> str:
        """Key of the caller: the same name with two kinds of credentials is two callers."""
        return f"{self.proof}:{self.name}"

    @property
    def flow(self) -> str:
        """Key by which resources are shared fairly between callers.

        The identity, or the connection where callers need no credential: nothing else distinguishes
        callers there, and one that floods must not take the share of everyone.
        """
        return f"{self.identity}@{self.connection}" if self.connection else self.identity

    def require_scope(self, scope: Scope) -> None:
        """Raise SightlineError PERMISSION_DENIED, `SCOPE_MISSING`, without the scope."""
        if scope not in self.scopes:
            raise SightlineError(
                grpc.StatusCode.PERMISSION_DENIED,
                "SCOPE_MISSING",
                f"caller {self.name} needs the scope {scope} for this call",
                metadata={"scope": scope},
            )

    def require_device(self, device_id: str) -> None:
        """Raise SightlineError PERMISSION_DENIED, `DEVICE_NOT_ALLOWED`, for another's device."""
        if device_id not in self.devices:
            raise SightlineError(
                grpc.StatusCode.PERMISSION_DENIED,
                "DEVICE_NOT_ALLOWED",
                f"caller {self.name} may not log or read as device {device_id}",
                metadata={"device_id": device_id},
            )

    def require_all_devices(self) -> None:
        """Raise SightlineError PERMISSION_DENIED, `DEVICE_NOT_ALLOWED`, unless it has every one."""
        if not self.devices.everything:
            raise SightlineError(
                grpc.StatusCode.PERMISSION_DENIED,
                "DEVICE_NOT_ALLOWED",
                f"caller {self.name} needs every device (`*`) for this call",
            )


ANONYMOUS = Caller("anonymous", Proof.ANONYMOUS, ALL_DEVICES, ALL_SCOPES)
"""The caller of every call where no credentials are configured."""


def anonymous(connection: str) -> Caller:
    """Return a caller without a credential, at the other end of this connection.

    On this machine it also has the scope `admin`: it could read the server's files anyway.
    """
    scopes = frozenset(Scope) if is_local_peer(connection) else ALL_SCOPES
    return replace(ANONYMOUS, connection=connection, scopes=scopes)


_current: ContextVar[Caller] = ContextVar("sightline_caller", default=ANONYMOUS)


def is_name(name: str) -> bool:
    """Return True if this is a valid name of a caller."""
    try:
        return 1 <= len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # a lone surrogate, which JSON and arguments can contain
        return False


def current_caller() -> Caller:
    """Return the caller of the call that is being handled."""
    return _current.get()


def known_caller() -> Caller | None:
    """Return the caller of the call that is being handled; None: it is not authenticated yet."""
    return _current.get(None)


def set_caller(caller: Caller) -> None:
    """Set the caller of this call. Each call is a task, so the value ends with it."""
    _current.set(caller)


def unauthenticated(reason: str, message: str) -> SightlineError:
    """Return the error for a call without valid credentials."""
    return SightlineError(grpc.StatusCode.UNAUTHENTICATED, reason, message)
