"""Arrays of other libraries as columns of our own, without importing any of them.

Arrays are told by what they can do: numpy's and the standard library's have a buffer, torch's can
`detach`, and everything else is a sequence.
"""

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from math import isnan
from typing import Any, TypeAlias, TypeVar

from edge.fields import text

Array: TypeAlias = Any
"""Numbers in rows: numpy's or torch's array, an `array`, or a sequence. No type is all of these."""
FLOAT32, INT32, INT64 = "f", "i", "q"  # type codes of `array`
_Column = TypeVar("_Column", bound=Sequence[object])


def floats(name: str, value: Array, width: int) -> "array[float]":
    """Return a copy as 32-bit floats, `width` in each row.

    Raises:
        ValueError: it has another shape, or holds NaN or what is no number.
    """
    flat = _flat(name, value, width)
    try:
        found = _copied(FLOAT32, flat)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be numbers ({error})") from error
    # A sum is quick and keeps every NaN; infinities may also make one.
    if isnan(sum(found)) and any(map(isnan, found)):
        raise ValueError(f"{name} must not hold NaN")
    return found


def integers(name: str, value: Array, code: str) -> "array[int]":
    """Return a copy as whole numbers.

    Raises:
        ValueError: it is no `[n]`, or holds what is no whole number of that size.
    """
    flat = _flat(name, value, 1)
    try:
        try:
            return _copied(code, flat)
        except TypeError:  # ultralytics has its classes and tracks as floats
            return _whole(code, flat.tolist() if hasattr(flat, "tolist") else flat)
    except (TypeError, ValueError, OverflowError) as error:
        bits = 8 * array(code).itemsize
        raise ValueError(f"{name} must be whole numbers of {bits} bits ({error})") from error


def _whole(code: str, numbers: Sequence[Array]) -> "array[int]":
    found = array(code, map(int, numbers))
    if found.tolist() != list(numbers):
        fraction = next(one for one in numbers if one != int(one))
        raise ValueError(f"got {fraction!r}")
    return found


def _flat(name: str, value: Array, width: int) -> Array:
    """Return numbers as one row, on the host, perhaps still in their owner's memory."""
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
    except (TypeError, RuntimeError):  # bfloat16, which numpy lacks, or there is no numpy
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
    """Return a copy, without a Python object per number where the type is right already."""
    try:
        view = memoryview(flat)
    except TypeError:
        view = None
    if view is None or view.format != code:
        return array(code, flat.tolist() if hasattr(flat, "tolist") else flat)
    found = array(code)
    found.frombytes(view.tobytes())
    return found


def texts(values: Array) -> tuple[str, ...]:
    """Return a copy of the labels of each.

    Raises:
        ValueError: one is no text.
    """
    found = tuple(values.tolist() if hasattr(values, "tolist") else values)
    for index, one in enumerate(found):
        text(f"class_name[{index}]", one)
    return found


def labels(
    names: Mapping[int, str] | Sequence[str] | None, class_ids: "array[int]"
) -> tuple[str, ...]:
    """Return the label of each class, or empty ones where there are no names.

    Raises:
        ValueError: a class has no name, or it is no text.
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
    """Return the column.

    Raises:
        ValueError: it has another length.
    """
    if len(column) != count:
        raise ValueError(f"{name} must have one value a box: {count} (got {len(column)})")
    return column
