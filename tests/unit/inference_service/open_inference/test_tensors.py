"""Bytes in and out, and every way in which they can be the wrong ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sightline.openinference.v2 import open_inference_pb2 as oip

from inference_service.open_inference.tensors import (
    Tensor,
    datatype,
    from_raw,
    pack_fp32,
    split_bytes,
    stack,
    to_tensor,
)
from servicekit.errors import SightlineError

FIELD = "raw_input_contents[0]"


def joined(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def test_datatypes_have_the_protocols_names() -> None:
    types = [np.bool_, np.uint8, np.int16, np.uint32, np.int64, np.float16, np.float32, np.float64]
    names = [datatype(np.dtype(each)) for each in types]
    assert names == ["BOOL", "UINT8", "INT16", "UINT32", "INT64", "FP16", "FP32", "FP64"]


def test_raw_numbers_are_little_endian_and_row_major() -> None:
    read = from_raw(b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40", (1, 3), np.dtype(np.float32), FIELD)
    assert read.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("size", [0, 11, 13, 24])
def test_raw_numbers_must_fill_their_shape(size: int) -> None:
    with pytest.raises(SightlineError, match=r"must be 12 bytes for FP32 \[1, 3\]") as caught:
        from_raw(bytes(size), (1, 3), np.dtype(np.float32), FIELD)
    assert [violation.field for violation in caught.value.violations] == [FIELD]


def test_a_size_beyond_64_bits_is_no_small_one() -> None:
    with pytest.raises(SightlineError):
        from_raw(b"", (2**32, 2**32), np.dtype(np.float32), FIELD)


@given(st.lists(st.floats(width=32)))
def test_typed_numbers_are_packed_as_they_are(values: list[float]) -> None:
    contents = oip.InferTensorContents(fp32_contents=values)
    packed = pack_fp32(contents.fp32_contents)
    assert packed == np.array(values, dtype="<f4").tobytes()


def test_what_a_later_protocol_adds_is_not_taken_for_numbers() -> None:
    unknown = b"\x7a\x04more"  # field 15
    data = oip.InferTensorContents(fp32_contents=[1.0]).SerializeToString() + unknown
    contents = oip.InferTensorContents.FromString(data)
    assert pack_fp32(contents.fp32_contents) == b"\0\0\x80\x3f"


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_strings_come_out_as_they_went_in(elements: list[bytes]) -> None:
    assert split_bytes(joined(*elements), len(elements), FIELD) == elements


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "ends within element 0"),
        (b"\x01\0\0", "ends within element 0"),
        (joined(b"abc")[:-1], "ends within element 0"),
        (joined(b"abc"), "ends within element 1"),
        (joined(b"abc") + b"\xff\xff\xff\xff", "ends within element 1"),
        (joined(b"abc", b"") + b"x", "got 1 more bytes"),
    ],
)
def test_strings_that_end_early_or_late(raw: bytes, rule: str) -> None:
    with pytest.raises(SightlineError, match=rule) as caught:
        split_bytes(raw, 2, FIELD)
    assert [violation.field for violation in caught.value.violations] == [FIELD]


def test_values_go_out_row_major_whatever_they_were() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert to_tensor(values) == Tensor((2, 3), values.tobytes())
    assert to_tensor(values.T) == Tensor((3, 2), np.ascontiguousarray(values.T).tobytes())
    assert to_tensor(values.astype(">f4")) == Tensor((2, 3), values.tobytes())


def test_rows_that_were_run_apart_are_stacked() -> None:
    parts = [
        [Tensor((1, 2), b"ab"), Tensor((1,), b"x")],
        [Tensor((2, 2), b"cdef"), Tensor((2,), b"yz")],
    ]
    assert stack(["a", "b"], parts) == [Tensor((3, 2), b"abcdef"), Tensor((3,), b"xyz")]
    assert stack(["a", "b"], parts[:1]) == parts[0]


def test_rows_of_different_shapes_cannot_be_stacked() -> None:
    with pytest.raises(SightlineError, match="output b has rows of different shapes") as caught:
        stack(["b"], [[Tensor((1, 2), b"ab")], [Tensor((1, 3), b"cde")]])
    assert caught.value.reason == "MODEL_OUTPUT_INVALID"
