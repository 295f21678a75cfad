"""The cookie of a session, and the credential of a request."""

import pytest

from console_service.session import (
    COOKIE,
    MAX_CREDENTIAL_BYTES,
    authorization_of,
    cookie_of,
    credential_in,
)
from servicekit.errors import SightlineError


def test_a_cookie_is_out_of_reach_of_scripts_and_other_sites() -> None:
    cookie = cookie_of("sk_abc.DEF-1", 3600, secure=False)
    assert cookie == f"{COOKIE}=sk_abc.DEF-1; Path=/; Max-Age=3600; HttpOnly; SameSite=Strict"
    assert cookie_of("k", 1, secure=True).endswith("; Secure")
    assert credential_in(cookie.partition(";")[0]) == "sk_abc.DEF-1"


@pytest.mark.parametrize("credential", ["a b", "a;b", "a\r\nSet-Cookie: b", 'a"b', "é", "a,b"])
def test_what_would_leave_its_cookie_is_refused(credential: str) -> None:
    with pytest.raises(SightlineError, match="credential must be one API key or JWT"):
        cookie_of(credential, 1, secure=False)


def test_a_credential_that_no_cookie_holds_is_refused() -> None:
    assert cookie_of("a" * MAX_CREDENTIAL_BYTES, 1, secure=True)
    with pytest.raises(SightlineError, match=r"credential must be at most 3800 bytes.*got 3801"):
        cookie_of("a" * (MAX_CREDENTIAL_BYTES + 1), 1, secure=True)


@pytest.mark.parametrize(
    ("header", "cookie", "expected"),
    [
        (None, None, None),
        (None, f"{COOKIE}=key", "Bearer key"),
        (None, f"a=b; {COOKIE}=key; c=d", "Bearer key"),
        ("Bearer own", f"{COOKIE}=key", "Bearer own"),
        (None, "other=key", None),
        (None, f"{COOKIE}=", None),
        (None, "][", None),
        # Cookies of other programs on the same host.
        (None, f'prefs={{"a": 1}}; {COOKIE}=key', "Bearer key"),
        (None, f"word; a[b]=1; c=d e; f=é; {COOKIE}=key==", "Bearer key=="),
        # What no console has set.
        (None, f"{COOKIE}=é", None),
        (None, f'{COOKIE}="a\\012b: c"', None),
    ],
)
def test_a_header_comes_before_the_session(
    header: str | None, cookie: str | None, expected: str | None
) -> None:
    assert authorization_of(header, cookie) == expected


def test_a_header_that_grpc_cannot_carry_is_refused() -> None:
    with pytest.raises(SightlineError, match="must be `Bearer") as caught:
        authorization_of("Bearer é", None)
    assert caught.value.reason == "CREDENTIAL_MALFORMED"
