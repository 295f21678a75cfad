"""Keys from files, and from a real HTTP server on the loopback interface."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from servicekit.auth.jwks import (
    COOLDOWN_SECONDS,
    FILE_CHECK_SECONDS,
    FRESH_SECONDS,
    STALE_SECONDS,
    JwksFile,
    JwksUrl,
)
from servicekit.errors import SightlineError
from tests.unit.servicekit.auth.issuer import Issuer
from tests.unit.servicekit.auth.signers import Signer, jwks

A, B = Signer.es256("a"), Signer.es256("b")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer(jwks(A))
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def knows(source: JwksUrl | JwksFile, signer: Signer) -> bool:
    return await source.find(signer.kid, signer.algorithm) is not None


async def unavailable(source: JwksUrl, signer: Signer = A) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        await knows(source, signer)
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "JWKS_UNAVAILABLE")
    assert error.retryable
    return error


async def test_keys_are_fetched_once(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    assert issuer.asked == 0
    assert all(await asyncio.gather(*[knows(source, A) for _ in range(50)]))
    clock.now += FRESH_SECONDS
    assert await knows(source, A)
    assert issuer.asked == 1


async def test_an_unknown_key_is_looked_for_at_a_bounded_rate(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    assert await knows(source, A)
    for _ in range(100):
        assert not await knows(source, B)
    assert issuer.asked == 1
    issuer.body = jwks(A, B)
    clock.now += COOLDOWN_SECONDS
    assert await knows(source, B)
    for number in range(100):
        assert not await knows(source, Signer(f"made-up-{number}", "ES256", None))
    assert issuer.asked == 2


async def test_old_keys_are_renewed_beside_the_calls(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    assert await knows(source, A)
    issuer.body = jwks(B)
    issuer.go.clear()
    clock.now += FRESH_SECONDS + 1
    assert await knows(source, A)  # although the fetch hangs
    issuer.go.set()
    assert await knows(source, B)  # waits for it
    assert not await knows(source, A)
    assert issuer.asked == 2


async def test_the_loop_goes_on_while_the_url_hangs(issuer: Issuer, clock: Clock) -> None:
    issuer.go.clear()
    source = JwksUrl(issuer.url, clock=clock)
    first, second = (asyncio.create_task(knows(source, A)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()  # takes nothing from the other
    issuer.go.set()
    assert await second
    assert issuer.asked == 1


async def test_an_answer_that_trickles_in_holds_up_nobody_for_long(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    assert await knows(source, A)
    monkeypatch.setattr("servicekit.auth.jwks.FETCH_TIMEOUT_SECONDS", 0.05)
    issuer.go.clear()
    clock.now += COOLDOWN_SECONDS
    await unavailable(source, B)  # who knows whether it exists
    fetching = source._fetching
    assert fetching is not None, "it was waited for"
    assert await knows(source, A)
    issuer.body = jwks(A, B)
    issuer.go.set()
    await fetching
    assert await knows(source, B)


async def test_a_url_that_is_down_is_no_refusal(issuer: Issuer, clock: Clock) -> None:
    issuer.status = 503
    source = JwksUrl(issuer.url, clock=clock)
    error = await unavailable(source)
    assert error.retry_after == pytest.approx(COOLDOWN_SECONDS)
    for _ in range(20):
        await unavailable(source)
    assert issuer.asked == 1  # who hammers us does not hammer the issuer
    issuer.status = 200
    clock.now += COOLDOWN_SECONDS
    assert await knows(source, A)


async def test_known_keys_outlive_an_outage_but_not_for_ever(issuer: Issuer, clock: Clock) -> None:
    source = JwksUrl(issuer.url, clock=clock)
    assert await knows(source, A)
    issuer.status = 500
    clock.now += STALE_SECONDS - 1
    assert await knows(source, A)
    assert source._fetching is not None
    await source._fetching
    await unavailable(source, B)  # who knows whether it exists
    clock.now += 2
    await unavailable(source, A)


ODD = '{"keys": [{"kty": "RSA", "alg": ["RS256"], "n": "AQAB", "e": "AQAB"}]}'


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"keys": []}', '{"keys": 1}', "x", "[" * 10**5, ODD]
)
async def test_what_is_no_jwks_counts_as_down(issuer: Issuer, clock: Clock, body: str) -> None:
    issuer.body = body
    await unavailable(JwksUrl(issuer.url, clock=clock))


async def test_a_redirect_is_not_followed(issuer: Issuer, clock: Clock) -> None:
    issuer.status = 302
    await unavailable(JwksUrl(issuer.url, clock=clock))
    assert issuer.asked == 1


async def test_nobody_there_counts_as_down(clock: Clock) -> None:
    await unavailable(JwksUrl("http://127.0.0.1:1/jwks.json", clock=clock))


async def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(A))
    source = JwksFile(path, clock)
    path.write_text(jwks(A, B))
    assert not await knows(source, B)  # not asked for yet
    clock.now += FILE_CHECK_SECONDS
    assert await knows(source, B)
    (tmp_path / "new").write_text(jwks(B))
    (tmp_path / "new").replace(path)
    clock.now += FILE_CHECK_SECONDS
    assert not await knows(source, A)


async def test_a_file_that_breaks_leaves_the_last_keys(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(A))
    source = JwksFile(path, clock)
    for break_it in (lambda: path.write_text("half a fi"), path.unlink):
        break_it()
        clock.now += FILE_CHECK_SECONDS
        assert await knows(source, A)
        assert "the last keys stay in use" in caplog.text
        caplog.clear()
    path.write_text(jwks(B))
    clock.now += FILE_CHECK_SECONDS
    assert await knows(source, B)


@pytest.mark.parametrize("body", ["", "[]", "{}", "x", ODD])
def test_a_file_that_is_no_jwks_is_refused(tmp_path: Path, body: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(body)
    with pytest.raises(ValueError, match=r"JWKS|Expecting value"):
        JwksFile(path)
