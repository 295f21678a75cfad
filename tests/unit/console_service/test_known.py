"""Credentials that were accepted lately."""

from console_service.known import KNOWN_SECONDS, MAX_KNOWN, KnownCredentials


def test_a_credential_is_known_to_the_service_that_has_accepted_it() -> None:
    known = KnownCredentials(lambda: 0.0)
    known.accept("ingest", "Bearer a")
    known.accept("inference", None)
    assert known.has("ingest", "Bearer a")
    assert known.has("inference", None)
    assert not known.has("inference", "Bearer a")
    assert not known.has("ingest", None)


def test_a_credential_is_forgotten_after_a_time_or_a_refusal() -> None:
    now = 0.0
    known = KnownCredentials(lambda: now)
    known.accept("ingest", "Bearer a")
    now = KNOWN_SECONDS - 1
    assert known.has("ingest", "Bearer a")
    known.refuse("ingest", "Bearer a")
    known.refuse("ingest", "Bearer never seen")
    assert not known.has("ingest", "Bearer a")
    known.accept("ingest", "Bearer a")
    now += KNOWN_SECONDS
    assert not known.has("ingest", "Bearer a")


def test_the_memory_is_bounded_and_keeps_the_last() -> None:
    known = KnownCredentials(lambda: 0.0)
    for number in range(MAX_KNOWN + 1):
        known.accept("ingest", str(number))
        known.accept("ingest", "often")
    assert not known.has("ingest", "0")
    assert known.has("ingest", "often")
    assert known.has("ingest", str(MAX_KNOWN))
