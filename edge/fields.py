"""Validation of record fields; each error names the field."""

import operator
from enum import StrEnum
from typing import TypeVar

INT32 = 1 << 31
INT64 = 1 << 63
_E = TypeVar("_E", bound=StrEnum)


def number(name: str, value: object) -> float:
    """Return a number of any library as a float.

    Raises:
        ValueError: the value is not a number, or too large for a float.
    """
    if type(value) is float:
        return value
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise wrong(name, "a number", value)
    try:
        return float(value.__float__())
    except (OverflowError, ValueError, TypeError, RuntimeError) as error:
        raise wrong(name, "a number", value) from error


def integer(name: str, value: object, bound: int) -> int:
    """Return an integer of any library as an int.

    Raises:
        ValueError: the value is not an integer, or not in -bound to bound - 1.
    """
    if type(value) is not int:
        try:  # accepts every type with __index__, such as numpy's integers
            value = operator.index(value)  # type: ignore[arg-type]  # raises TypeError
        except TypeError as error:
            raise wrong(name, "a whole number", value) from error
    if not -bound <= value < bound:
        raise wrong(name, f"{-bound} to {bound - 1}", value)
    return value


def text(name: str, value: object) -> None:
    """Check that a value is text that can be encoded as UTF-8.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise wrong(name, "text", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise wrong(name, "text without lone surrogates", value) from error


def choice(choices: type[_E], name: str, value: str) -> _E:
    """Return the member of an enum with a value.

    Raises:
        ValueError: there is no such member.
    """
    try:
        return choices(value)
    except ValueError as error:
        raise wrong(name, "one of " + ", ".join(choices), value) from error


def wrong(name: str, rule: str, value: object) -> ValueError:
    """Return the error for an invalid field."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return ValueError(f"{name} must be {rule} (got {shown})")
