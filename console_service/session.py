"""The session of a browser: a credential in a cookie.

Images and event streams of a page cannot send headers.

The cookie holds the credential itself, which the console forwards and never judges. It keeps
nothing, so that any console behind a load balancer knows the session.
"""

import re

import grpc
from starlette.requests import cookie_parser

from servicekit.errors import SightlineError, invalid

COOKIE = "sightline-session"
MAX_CREDENTIAL_BYTES = 3800
"""Browsers drop a cookie of more than 4096 bytes, name and attributes included."""
_CREDENTIAL = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""The characters of a bearer credential (RFC 6750, `b64token`)."""


def cookie_of(credential: str, seconds: int, *, secure: bool) -> str:
    """Return the header `Set-Cookie` that begins a session.

    Args:
        credential: an API key or a JWT.
        seconds: lifetime of the cookie, s; 0: it ends the session.
        secure: True if it may go over HTTPS only.

    Raises:
        SightlineError: INVALID_ARGUMENT; the credential cannot be one, or is too long for a cookie.
    """
    if credential and not _CREDENTIAL.fullmatch(credential):
        raise invalid("credential", "must be one API key or JWT, without blanks")
    if len(credential) > MAX_CREDENTIAL_BYTES:
        raise invalid(
            "credential",
            f"must be at most {MAX_CREDENTIAL_BYTES} bytes, which is what a cookie holds,"
            f" got {len(credential)}",
        )
    parts = [f"{COOKIE}={credential}", "Path=/", f"Max-Age={seconds}", "HttpOnly"]
    return "; ".join([*parts, "SameSite=Strict", *(["Secure"] if secure else [])])


def credential_in(cookie: str) -> str | None:
    """Return the credential of a header `Cookie`; None: it has no session.

    Cookies belong to a host and not to a port: those of other programs on it are here too, and some
    of them break the grammar of cookies, at which `http.cookies.SimpleCookie` drops every cookie.
    """
    found = cookie_parser(cookie).get(COOKIE, "")
    return found if _CREDENTIAL.fullmatch(found) else None


def authorization_of(header: str | None, cookie: str | None) -> str | None:
    """Return the metadata `authorization` of a request; None: it shows no credential.

    A header `Authorization` takes precedence over the session.

    Args:
        header: value of `Authorization`; None: there is none.
        cookie: value of `Cookie`; None: there is none.

    Raises:
        SightlineError: UNAUTHENTICATED, `CREDENTIAL_MALFORMED`; the header is not printable ASCII.
    """
    if header:
        if not (header.isascii() and header.isprintable()):
            raise SightlineError(
                grpc.StatusCode.UNAUTHENTICATED,
                "CREDENTIAL_MALFORMED",
                "the header Authorization must be `Bearer <API key or JWT>` in ASCII",
            )
        return header
    credential = credential_in(cookie) if cookie else None
    return f"Bearer {credential}" if credential else None
