"""Metadata that an exporter wrote into an ONNX file: ultralytics' keys, parsed safely."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vision.errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The metadata that this package uses; None for a key that is missing.

    Attributes:
        names: class id to label, ids 0 to N - 1 without gaps.
        input_size: height and width of the input in pixels (key ``imgsz``).
        stride: both sides of the input are multiples of it, in pixels.
        task: ``detect``, ``segment``, ``classify``, ...
        head: class of the last layer, e.g. ``Detect``; written since ultralytics 8.4.
        end_to_end: True if the output needs no NMS (key ``end2end``, or ``nms`` in ``args``).
    """

    names: Mapping[int, str] | None = None
    input_size: tuple[int, int] | None = None
    stride: int | None = None
    task: str | None = None
    head: str | None = None
    end_to_end: bool = False


def parse_metadata(raw: Mapping[str, str]) -> ModelMetadata:
    """Parse the string map of an ONNX file; ignore unknown keys.

    Raises:
        ModelError: ``MODEL_METADATA_INVALID`` with the key and the allowed value.
    """
    return ModelMetadata(
        names=_names(raw),
        input_size=_input_size(raw),
        stride=_stride(raw),
        task=raw.get("task"),
        head=raw.get("head"),
        end_to_end=_end_to_end(raw),
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


def _names(raw: Mapping[str, str]) -> Mapping[int, str] | None:
    return check_names(_literal(raw, "names"), "names") if "names" in raw else None


def _input_size(raw: Mapping[str, str]) -> tuple[int, int] | None:
    if "imgsz" not in raw:
        return None
    match _literal(raw, "imgsz"):
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise _invalid("imgsz", other, "[height, width], both above 0")


def _stride(raw: Mapping[str, str]) -> int | None:
    if "stride" not in raw:
        return None
    match _literal(raw, "stride"):
        case int(stride) if stride > 0:
            return stride
        case other:
            raise _invalid("stride", other, "a whole number above 0")


def _end_to_end(raw: Mapping[str, str]) -> bool:
    flag = _literal(raw, "end2end") if "end2end" in raw else False
    if not isinstance(flag, bool):
        raise _invalid("end2end", flag, "True or False")
    args = _literal(raw, "args") if "args" in raw else {}
    if not isinstance(args, dict):
        raise _invalid("args", args, "a map")
    return flag or args.get("nms") is True


def _literal(raw: Mapping[str, str], key: str) -> object:
    text = raw[key]
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise _invalid(key, text, "a Python literal") from error
    return value


def _invalid(key: str, value: object, expected: str) -> ModelError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return ModelError("MODEL_METADATA_INVALID", f"key {key!r} must be {expected}, got {shown}")
