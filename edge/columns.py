"""Conversion of other libraries' arrays to `array` columns, without importing any library.

Arrays are recognised by their methods: those of numpy and of the standard library have a buffer,
torch's have `detach`, and everything else counts as a sequence. numpy is not used, even where it is
installed: the code without it is needed anyway, and for few detections it is as fast.
"""

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from math import isnan
from typing import Any, TypeAlias, TypeVar

from edge.fields import text

Array: TypeAlias = Any
"""An array of numpy or torch, an `array` or a sequence. No common type describes all of these."""
FLOAT32, INT32, INT64 = "f", "i", "q"  # type codes of `array`
_Column = TypeVar("_Column", bound=Sequence[object])


def floats(name: str, value: Array, width: int) -> "array[float]":
    """Return a copy as 32-bit floats, `width` in each row.

    Raises:
        ValueError: the array has another shape, or contains NaN or a value that is not a number.
    """
    flat = _flat(name, value, width)
    try:
        column = _copied(FLOAT32, flat)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be numbers ({error})") from error
    # A sum is fast and propagates NaN. Infinities may also yield NaN, so look at each value then.
    if isnan(sum(column)) and any(map(isnan, column)):
        raise ValueError(f"{name} must not contain NaN")
    return column


def points(name: str, value: Array, count: int) -> tuple["array[float]", tuple[int, int]]:
    """Return a copy of points `[count, k, 2]` or `[count, k, 3]`, and k and the last size.

    Raises:
        ValueError: the array has another shape, or contains NaN or a value that is not a number.
    """
    if hasattr(value, "detach"):
        value = _from_torch(value)
    shape = getattr(value, "shape", None)
    if shape is None:
        value, shape = _nested_list(name, value)
    elif tuple(shape) == (0,):
        shape = (0, 0, 2)
    if len(shape) != 3 or shape[0] != count or shape[2] not in (2, 3):
        raise ValueError(f"{name} must have the shape [{count}, k, 2 or 3] (got {list(shape)})")
    flat = value if isinstance(value, list) else value.reshape(-1)
    return floats(name, flat, 1), (int(shape[1]), int(shape[2]))


def _nested_list(name: str, value: Array) -> tuple[list[Any], tuple[int, int, int]]:
    """Return the numbers of nested sequences as one row, and their shape."""
    try:
        rows = [[list(point) for point in row] for row in value]
    except TypeError as error:
        raise ValueError(f"{name} must be an array ({error})") from error
    widths = {len(point) for row in rows for point in row}
    counts = set(map(len, rows))
    if len(counts) > 1 or len(widths) > 1:
        raise ValueError(
            f"{name} must have as many points in each row and as many numbers in each point"
            f" (got {sorted(counts)} points and {sorted(widths)} numbers)"
        )
    shape = (len(rows), max(counts, default=0), max(widths, default=2))
    return list(chain.from_iterable(chain.from_iterable(rows))), shape


def integers(name: str, value: Array, code: str) -> "array[int]":
    """Return a copy as integers.

    Raises:
        ValueError: the shape is not `[n]`, or a value is not an integer of that size.
    """
    flat = _flat(name, value, 1)
    try:
        try:
            return _copied(code, flat)
        except TypeError:  # ultralytics stores classes and tracks as floats
            return _whole(code, flat.tolist() if hasattr(flat, "tolist") else flat)
    except (TypeError, ValueError, OverflowError) as error:
        bits = 8 * array(code).itemsize
        raise ValueError(f"{name} must be whole numbers of {bits} bits ({error})") from error


def _whole(code: str, numbers: Sequence[Array]) -> "array[int]":
    column = array(code, map(int, numbers))
    if column.tolist() != list(numbers):
        fraction = next(number for number in numbers if number != int(number))
        raise ValueError(f"got {fraction!r}")
    return column


def _flat(name: str, value: Array, width: int) -> Array:
    """Return the numbers as one row in host memory, possibly without a copy."""
    if hasattr(value, "detach"):
        value = _from_torch(value)
    shape = getattr(value, "shape", None)
    if shape is None:
        return _flat_list(name, value, width)
    expected = (len(shape) == 2 and shape[1] == width) if width > 1 else len(shape) == 1
    if not expected and tuple(shape) != (0,):
        rule = f"[n, {width}]" if width > 1 else "[n]"
        raise ValueError(f"{name} must have the shape {rule} (got {list(shape)})")
    return value.reshape(-1)


def _from_torch(tensor: Array) -> Array:
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):  # bfloat16, which numpy lacks, or numpy is not installed
        return tensor


def _flat_list(name: str, value: Array, width: int) -> list[Any]:
    try:
        rows = list(value)
        if width == 1:
            return rows
        rows = list(map(list, rows))
    except TypeError as error:
        raise ValueError(f"{name} must be an array ({error})") from error
    for row in rows:
        if len(row) != width:
            raise ValueError(f"{name} must have {width} numbers in each row (got {len(row)})")
    return list(chain.from_iterable(rows))


def _copied(code: str, flat: Array) -> "array[Any]":
    """Return a copy, without a Python object per number if the type is already right."""
    try:
        view = memoryview(flat)
    except TypeError:
        view = None
    if view is None or view.format != code:
        return array(code, flat.tolist() if hasattr(flat, "tolist") else flat)
    column = array(code)
    column.frombytes(view.tobytes())
    return column


def texts(values: Array) -> tuple[str, ...]:
    """Return a copy of the labels.

    Raises:
        ValueError: a label is not text.
    """
    column = tuple(values.tolist() if hasattr(values, "tolist") else values)
    for index, label in enumerate(column):
        text(f"class_name[{index}]", label)
    return column


def labels(
    names: Mapping[int, str] | Sequence[str] | None, class_ids: "array[int]"
) -> tuple[str, ...]:
    """Return the label of each class, or empty labels without `names`.

    Raises:
        ValueError: a class has no label, or the label is not text.
    """
    if names is None:
        return ("",) * len(class_ids)
    by_class = {class_id: _label(names, class_id) for class_id in set(class_ids)}
    return tuple(map(by_class.__getitem__, class_ids))


def _label(names: Mapping[int, str] | Sequence[str], class_id: int) -> str:
    try:
        if class_id < 0 and not isinstance(names, Mapping):
            raise IndexError
        label = names[class_id]
    except LookupError:
        raise ValueError(f"names must have a label for class_id {class_id}") from None
    text(f"names[{class_id}]", label)
    return label


def of_length(count: int, name: str, column: _Column) -> _Column:
    """Return the column after checking its length.

    Raises:
        ValueError: the length is not `count`.
    """
    if len(column) != count:
        raise ValueError(f"{name} must have one value per box, {count} (got {len(column)})")
    return column
