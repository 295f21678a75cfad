"""Checks of COCO's compressed run lengths, over columns.

Pure. A text holds the lengths of the runs of a mask in column-major order: of pixels outside of the
object first, then inside, and so on in turn. Each number is written in characters from 48 on, five
bits in each, the lowest first; the bit 32 says that another character follows, and the sign of the
last one is extended. From the fourth number on, the difference to the number two before is written.
Source: `rleToString` and `rleFrString` in `maskApi.c` of COCO's API.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_FIRST, _LAST = 48, 111
_MORE, _SIGN, _BITS = 32, 16, 5
_MAX_CHARACTERS = 7
"""Characters of the largest difference of two runs in 65535 * 65535 pixels."""
_CHUNK_BYTES = 64 * 1024
"""Approximate size of the texts that are decoded at a time: what this takes stays in the cache."""
_Mask = NDArray[np.bool_]
_Numbers = NDArray[np.int64]


class BrokenRuns(NamedTuple):
    """The texts that break a rule."""

    malformed: _Mask
    """True: the text is no list of run lengths."""
    wrong_sum: _Mask
    """True: the run lengths do not add up to the number of pixels."""


def find_broken_runs(texts: pa.StringArray, pixels: _Numbers, checked: _Mask) -> BrokenRuns:
    """Return which texts are no run lengths of a mask of so many pixels.

    Args:
        texts: the column, without nulls.
        pixels: number of pixels of each mask, 1 to 65535 * 65535.
        checked: the texts to check, none of which is empty; the others count as good.
    """
    broken = BrokenRuns(*(np.zeros(len(texts), np.bool_) for _ in range(2)))
    _, offsets_buffer, data = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset :][: len(texts) + 1]
    characters = np.frombuffer(data or b"", np.uint8)
    for rows in _chunks(np.flatnonzero(checked), np.diff(offsets)):
        sizes = np.diff(offsets)[rows]
        ends = np.cumsum(sizes)
        whole = characters[offsets[rows[0]] : offsets[rows[-1] + 1]]
        if len(whole) != ends[-1]:  # texts between them are not checked
            whole = whole[np.repeat(checked[rows[0] : rows[-1] + 1], _between(offsets, rows))]
        found = _decode(whole, ends - sizes, ends, pixels[rows])
        broken.malformed[rows], broken.wrong_sum[rows] = found
    return broken


def _between(offsets: NDArray[np.int32], rows: _Numbers) -> NDArray[np.int32]:
    """Return the sizes of the texts from the first of these rows to the last."""
    return np.diff(offsets[rows[0] : rows[-1] + 2])


def _chunks(rows: _Numbers, sizes: NDArray[np.int32]) -> Iterator[_Numbers]:
    """Yield the rows in parts of about `_CHUNK_BYTES`, at least one row in each."""
    through = np.cumsum(sizes[rows], dtype=np.int64)
    start = 0
    while start < len(rows):
        before = through[start - 1] if start else 0
        end = max(int(np.searchsorted(through, before + _CHUNK_BYTES, side="right")), start + 1)
        yield rows[start:end]
        start = end


def _decode(
    characters: NDArray[np.uint8], starts: _Numbers, ends: _Numbers, pixels: _Numbers
) -> BrokenRuns:
    """Return the broken texts; each text is the characters from its start to its end."""
    malformed = np.add.reduceat((characters < _FIRST) | (characters > _LAST), starts) > 0
    digits = characters - np.uint8(_FIRST)
    ended = (digits & _MORE) == 0
    malformed |= ~ended[ends - 1]
    ended[ends - 1] = True
    last = np.flatnonzero(ended)
    first = np.concatenate(([0], last[:-1] + 1))
    sizes = last - first + 1
    counts = np.add.reduceat(ended, starts, dtype=np.int64)
    first_number = np.cumsum(counts) - counts
    malformed |= np.maximum.reduceat(sizes, first_number) > _MAX_CHARACTERS
    numbers = _undo_differences(_signed(digits, first, sizes), counts, first_number)
    malformed |= np.minimum.reduceat(numbers, first_number) < 0
    # A run longer than the mask would let the sum of many overflow.
    runs = np.minimum(numbers, np.repeat(pixels + 1, counts))
    return BrokenRuns(malformed, np.add.reduceat(runs, first_number) != pixels)


def _signed(digits: NDArray[np.uint8], first: _Numbers, sizes: _Numbers) -> _Numbers:
    """Return the numbers that begin at these digits and have so many, as far as 7 hold them."""
    numbers = (digits[first] & (_MORE - 1)).astype(np.int64)
    longer = np.arange(len(first))
    for place in range(1, _MAX_CHARACTERS):  # most numbers have one digit or two
        longer = longer[sizes[longer] > place]
        if not len(longer):
            break
        digit = (digits[first[longer] + place] & (_MORE - 1)).astype(np.int64)
        numbers[longer] |= digit << _BITS * place
    negative = np.flatnonzero(digits[first + sizes - 1] & _SIGN)
    numbers[negative] -= 1 << _BITS * np.minimum(sizes[negative], _MAX_CHARACTERS)
    return numbers


def _undo_differences(differences: _Numbers, counts: _Numbers, first: _Numbers) -> _Numbers:
    """Return the numbers of all texts.

    In each text the numbers 1, 3, 5, ... are one chain of sums, and 2, 4, 6, ... are another. Both
    are taken from the sums of every other number since the first text.
    """
    sums = np.empty(len(differences) + 1, np.int64)
    sums[0] = 0  # in place of the number before the first text
    sums[1::2] = np.cumsum(differences[0::2])
    sums[2::2] = np.cumsum(differences[1::2])
    # Of the chain that begins with number 1 of each text, and of that with number 2.
    before = np.stack((sums[first], sums[first + 1]))
    odd = np.repeat(before[0], counts)
    even = np.repeat(before[1], counts)
    place = np.arange(len(differences)) - np.repeat(first, counts)
    numbers = sums[1:] - np.where(place & 1, odd, even)
    numbers[first] = differences[first]
    return numbers
