import pytest

from inference_service.callers import ANONYMOUS, authenticate


@pytest.mark.parametrize(
    ("identities", "name"),
    [
        (None, ANONYMOUS),
        ([], ANONYMOUS),
        ([b""], ANONYMOUS),
        ([b"gate-1"], "gate-1"),
        ([b"gate-1.example", b"gate-1"], "gate-1.example"),
        ([b"gate-\xff"], "gate-\ufffd"),
    ],
)
def test_the_caller_is_the_first_identity_that_was_verified(
    identities: list[bytes] | None, name: str
) -> None:
    assert authenticate(identities) == name
