"""Metadata that an exporter wrote into an ONNX file: ultralytics' keys, parsed safely.

Exporters, their versions and people who edit metadata write the same value in several forms: as a
Python literal, as JSON, or as plain text. Each common form is read. A value that cannot be read is
noted, and refused only by a model that needs it.
"""

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from vision.errors import ModelError

T = TypeVar("T")

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}
_NOT_FLAGS = frozenset(("none", "null"))
_ULTRALYTICS_KEYS = frozenset(("task", "head", "end2end", "args"))
_MAX_LITERAL = 1_000_000  # characters; the labels of 20 000 classes take a third
_RTDETR_HEAD = "RTDETRDecoder"


class _UnreadableError(Exception):
    """A value that cannot be read; the message is what is allowed."""


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The metadata that this package uses; None for a key that is missing or unreadable.

    Attributes:
        names: class id to label, ids 0 to N - 1 without gaps.
        input_size: height and width of the input in pixels (key ``imgsz``).
        stride: both sides of the input are multiples of it, in pixels.
        task: ``detect``, ``segment``, ``classify``, ...
        head: class of the last layer, e.g. ``Detect``; written since ultralytics 8.4.
        end_to_end: True if the output needs no NMS (key ``end2end``, or ``nms`` in ``args``).
        keypoint_shape: keypoints of an object, and values of a keypoint: 2 for x and y, 3 with a
            confidence (key ``kpt_shape``).
        keypoint_names: a name for each keypoint (key ``kpt_names``).
        by_ultralytics: True if the author is ultralytics, or keys are there that only its exporter
            writes.
        is_rtdetr: True if the head or the description is that of RT-DETR.
        unreadable: for each key whose value cannot be read, what is wrong with it.
    """

    names: Mapping[int, str] | None = None
    input_size: tuple[int, int] | None = None
    stride: int | None = None
    task: str | None = None
    head: str | None = None
    end_to_end: bool = False
    keypoint_shape: tuple[int, int] | None = None
    keypoint_names: tuple[str, ...] | None = None
    by_ultralytics: bool = False
    is_rtdetr: bool = False
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def missing(self, key: str) -> str:
        """Return why a key that is needed has no value: it is missing, or cannot be read."""
        return self.unreadable.get(key, f"key {key!r} is missing")


def parse_metadata(raw: Mapping[str, str]) -> ModelMetadata:
    """Parse the string map of an ONNX file; ignore unknown keys.

    A value that cannot be read never raises; see `ModelMetadata.unreadable`.

    Example:
        >>> parse_metadata({"names": "['plate']", "imgsz": "640"}).input_size
        (640, 640)
    """
    unreadable: dict[str, str] = {}

    def read(key: str, parse: Callable[[object], T]) -> T | None:
        try:
            return parse(_value(raw[key])) if key in raw else None
        except _UnreadableError as error:
            unreadable[key] = _problem(key, raw[key], str(error))
            return None

    arguments = read("args", _arguments) or {}
    head = raw.get("head")
    described = raw.get("description", "").lower()
    architecture = described.partition(" model")[0]  # what follows may name the training data
    signed = "ultralytics" in f"{described} {raw.get('author', '').lower()}"
    return ModelMetadata(
        names=read("names", _names),
        input_size=read("imgsz", _input_size),
        stride=read("stride", _stride),
        task=raw["task"].strip().lower() if "task" in raw else None,
        head=head,
        end_to_end=bool(read("end2end", _flag)) or _is_true(arguments.get("nms")),
        keypoint_shape=read("kpt_shape", _keypoint_shape),
        keypoint_names=read("kpt_names", _keypoint_names),
        by_ultralytics=signed or not _ULTRALYTICS_KEYS.isdisjoint(raw),
        is_rtdetr=head == _RTDETR_HEAD or (head is None and "rtdetr" in architecture),
        unreadable=unreadable,
    )


def check_names(names: object, key: str) -> Mapping[int, str]:
    """Return labels as a read-only map, ids 0 to N - 1.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID``: it is anything else. The message refers to `key`.
    """
    expected = "a map of class ids, 0 to N - 1, to labels"
    if not isinstance(names, Mapping) or not names:
        raise _invalid(key, names, expected)
    if any(type(number) is not int for number in names) or set(names) != set(range(len(names))):
        raise _invalid(key, list(names), expected)
    if not all(isinstance(label, str) for label in names.values()):
        raise _invalid(key, names, expected)
    return MappingProxyType({number: names[number] for number in range(len(names))})


def _value(text: str) -> object:
    """Return the value of a Python literal or JSON, or else the text itself."""
    text = text.strip()
    if len(text) > _MAX_LITERAL:
        raise _UnreadableError(f"at most {_MAX_LITERAL} characters")
    for parse in (ast.literal_eval, json.loads):
        try:
            value: object = parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        return value
    return text


def _names(value: object) -> Mapping[int, str]:
    """Read labels: a map with ids as numbers or text, or a list in the order of the ids."""
    expected = "a map of class ids, 0 to N - 1, to labels, or a list of labels"
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        raise _UnreadableError(expected)
    labels = {_whole(number, expected): label for number, label in value.items()}
    if len(labels) != len(value) or set(labels) != set(range(len(labels))):
        raise _UnreadableError(expected)
    if not all(isinstance(label, str | int | float) for label in labels.values()):
        raise _UnreadableError(expected)
    return MappingProxyType({number: str(labels[number]) for number in range(len(labels))})


def _input_size(value: object) -> tuple[int, int]:
    """Read a size: a side of a square, or height and width."""
    expected = "[height, width] or the side of a square, above 0"
    sides = value if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2):
        raise _UnreadableError(expected)
    height, width = (_above_zero(side, expected) for side in (sides[0], sides[-1]))
    return height, width


def _stride(value: object) -> int:
    """Read a stride: of the whole model, or of each level."""
    expected = "a whole number above 0"
    strides = value if isinstance(value, list | tuple) and value else [value]
    return max(_above_zero(stride, expected) for stride in strides)


def _flag(value: object) -> bool:
    if str(value).strip().lower() not in _FLAGS.keys() | _NOT_FLAGS:
        raise _UnreadableError("True or False")
    return _is_true(value)


def _is_true(value: object) -> bool:
    return _FLAGS.get(str(value).strip().lower(), False)


def _arguments(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise _UnreadableError("a map")
    return value


def _keypoint_shape(value: object) -> tuple[int, int]:
    expected = "[keypoints, 2 or 3]"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _UnreadableError(expected)
    count, values = (_above_zero(part, expected) for part in value)
    if values not in (2, 3):
        raise _UnreadableError(expected)
    return count, values


def _keypoint_names(value: object) -> tuple[str, ...]:
    """Read names of keypoints: a list, or a list for each class, if these are all the same."""
    expected = "a list of names, or a map of class ids to the same list"
    lists = list(value.values()) if isinstance(value, dict) else [value]
    if not lists or any(each != lists[0] for each in lists):
        raise _UnreadableError(expected)
    if not isinstance(lists[0], list | tuple) or not lists[0]:
        raise _UnreadableError(expected)
    return tuple(str(name) for name in lists[0])


def _above_zero(value: object, expected: str) -> int:
    number = _whole(value, expected)
    if number <= 0:
        raise _UnreadableError(expected)
    return number


def _whole(value: object, expected: str) -> int:
    """Return a whole number, also one that is written as text or with a fraction of 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _UnreadableError(expected)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise _UnreadableError(expected) from error
    if not number.is_integer():
        raise _UnreadableError(expected)
    return int(number)


def _problem(key: str, value: object, expected: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return f"key {key!r} must be {expected}, got {shown}"


def _invalid(key: str, value: object, expected: str) -> ModelError:
    return ModelError("MODEL_METADATA_INVALID", _problem(key, value, expected))
