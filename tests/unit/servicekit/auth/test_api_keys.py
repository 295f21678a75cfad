import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from servicekit.auth import api_keys
from servicekit.auth.api_keys import ApiKey
from servicekit.auth.caller import Devices, Proof, Scope
from servicekit.errors import SightlineError

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture
def made() -> tuple[str, ApiKey]:
    text, key_id, secret_hash = api_keys.generate()
    return text, ApiKey(key_id, secret_hash, "gate-1", ("line-*",), (Scope.LOG,), NOW)


def refusal(text: str, *keys: ApiKey) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        api_keys.check(text, {key.id: key for key in keys}, NOW)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    return caught.value


def test_a_key_is_its_holders(made: tuple[str, ApiKey]) -> None:
    text, key = made
    caller = api_keys.check(text, {key.id: key}, NOW)
    assert (caller.name, caller.proof) == ("gate-1", Proof.API_KEY)
    assert caller.devices == Devices.parse(["line-*"])
    assert caller.scopes == {Scope.LOG}


def test_a_key_has_256_random_bits_and_only_their_hash_is_kept(made: tuple[str, ApiKey]) -> None:
    text, key = made
    assert re.fullmatch(r"slk_[0-9a-f]{12}_[\w-]{43}", text)
    assert len(key.secret_hash) == 32
    assert text[-43:] not in repr(key)
    assert api_keys.generate()[0] != api_keys.generate()[0]


def test_another_secret_under_a_known_id_is_unknown(made: tuple[str, ApiKey]) -> None:
    text, key = made
    for wrong in (
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text[:-1],
        text + "A",
        text.upper(),
        f"slk_{key.id}_",
        "slk_",
        text.replace("slk_", "slk_0"),
        text + "\n",
    ):
        assert refusal(wrong, key).reason == "API_KEY_UNKNOWN"
    assert refusal(text).reason == "API_KEY_UNKNOWN"


def test_an_end_is_told_only_to_who_has_the_secret(made: tuple[str, ApiKey]) -> None:
    text, key = made
    revoked = replace(key, revoked_at=NOW)
    assert refusal(text, revoked).reason == "API_KEY_REVOKED"
    assert refusal(text[:-1] + "~", revoked).reason == "API_KEY_UNKNOWN"
    assert refusal(text, replace(key, expires_at=NOW)).reason == "API_KEY_EXPIRED"
    later = replace(key, expires_at=NOW + timedelta(microseconds=1))
    assert api_keys.check(text, {key.id: later}, NOW).name == "gate-1"
