"""The check of run lengths agrees with a decoder of one text at a time, and with supervision's."""

import numpy as np
import pyarrow as pa
import pytest
import supervision
from hypothesis import given
from hypothesis import strategies as st

from ingest_service.receive import run_lengths

TEXT = st.text(
    st.characters(min_codepoint=48, max_codepoint=111) | st.sampled_from("\0/p\x7fé"), min_size=1
)


def verdicts(*masks: tuple[str, int]) -> list[str]:
    texts, pixels = zip(*masks, strict=True)
    broken = run_lengths.find_broken_runs(
        pa.array(texts), np.array(pixels, np.int64), np.ones(len(masks), np.bool_)
    )
    pairs = zip(broken.malformed.tolist(), broken.wrong_sum.tolist(), strict=True)
    return ["malformed" if bad else "sum" if wrong else "good" for bad, wrong in pairs]


def expected(text: str, pixels: int) -> str:
    """Return the verdict of a decoder that reads one character after the other."""
    runs: list[int] = []
    number = place = 0
    if not all(48 <= ord(character) <= 111 for character in text):
        return "malformed"
    for character in text:
        digit = ord(character) - 48
        number |= (digit & 31) << 5 * place
        place += 1
        if digit & 32:
            continue
        if place > 7:
            return "malformed"
        number -= (digit & 16) << 5 * place - 4
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = place = 0
    if place or min(runs) < 0:
        return "malformed"
    return "good" if sum(runs) == pixels else "sum"


@given(st.lists(st.tuples(TEXT, st.integers(1, 65535**2)), min_size=1, max_size=20), st.booleans())
def test_any_text_has_the_verdict_of_the_plain_decoder(
    masks: list[tuple[str, int]], fitting: bool
) -> None:
    if fitting:
        masks = [(text, total(text) or pixels) for text, pixels in masks]
    assert verdicts(*masks) == [expected(*mask) for mask in masks]


def total(text: str) -> int:
    """Return the number of pixels with which a text is good; 0: there is none."""
    for pixels in (1, 2, 3, 5, 8, 100, 1000, 10_000):
        if expected(text, pixels) == "good":
            return pixels
    return 0


@pytest.fixture(scope="module")
def masks() -> list[tuple[str, int]]:
    chance = np.random.default_rng(7)
    made = []
    for share in (0, 0.001, 0.01, 0.3, 0.9, 1):
        for shape in ((1, 1), (1, 500), (33, 1), (48, 64), (300, 200)):
            mask = chance.random(shape) < share
            made.append((str(supervision.mask_to_rle(mask, compressed=True)), mask.size))
    return made


def test_what_supervision_writes_is_good(masks: list[tuple[str, int]]) -> None:
    assert set(verdicts(*masks)) == {"good"}
    assert {expected(*mask) for mask in masks} == {"good"}
    assert set(verdicts(*((text, pixels + 1) for text, pixels in masks))) == {"sum"}


def test_masks_are_judged_alone_wherever_the_chunks_end(
    masks: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = [masks[-1], ("o", 5), masks[0], (masks[-1][0], 5), ("5", 5), *masks]
    for size in (1, 10, 1000):
        monkeypatch.setattr(run_lengths, "_CHUNK_BYTES", size)
        assert verdicts(*mixed)[:5] == ["good", "malformed", "good", "sum", "good"]
        assert set(verdicts(*mixed)[5:]) == {"good"}


def test_the_largest_mask_is_good_and_no_number_overflows() -> None:
    largest = 65535**2
    digits = [(largest >> 5 * place & 31) + (48 + 32 * (place < 6)) for place in range(7)]
    text = "".join(map(chr, digits))
    far = "ooooooO" * 9000  # every difference is as large as one can be
    assert verdicts((text, largest), (f"0{text}", largest), (far, largest)) == [
        "good",
        "good",
        expected(far, largest),
    ]


def test_texts_that_are_not_checked_count_as_good() -> None:
    broken = run_lengths.find_broken_runs(
        pa.array(["o", "", "o"]), np.ones(3, np.int64), np.array([False, False, True])
    )
    assert broken.malformed.tolist() == [False, False, True]
    assert not broken.wrong_sum[:2].any()
    nothing = run_lengths.find_broken_runs(
        pa.array([], pa.string()), np.ones(0, np.int64), np.ones(0, np.bool_)
    )
    assert not len(nothing.malformed)
