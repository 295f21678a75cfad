"""What a field of a record can hold at all, told with the field's name where it cannot."""

import operator
from enum import StrEnum
from typing import TypeVar

INT32 = 1 << 31
INT64 = 1 << 63
_E = TypeVar("_E", bound=StrEnum)


def number(name: str, value: object) -> float:
    """Return a float of whatever number a library's arrays yield.

    Raises:
        ValueError: it is none, or too large for one.
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
    """Return an int of whatever integer a library's arrays yield.

    Raises:
        ValueError: it is none, or not in -bound to bound - 1.
    """
    if type(value) is not int:
        try:  # whatever has __index__ (numpy's integers), told by asking
            value = operator.index(value)  # type: ignore[arg-type]  # raises TypeError
        except TypeError as error:
            raise wrong(name, "a whole number", value) from error
    if not -bound <= value < bound:
        raise wrong(name, f"{-bound} to {bound - 1}", value)
    return value


def text(name: str, value: object) -> None:
    """Check that a value is text that UTF-8 can hold.

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
    """Return the member that a word names.

    Raises:
        ValueError: there is none.
    """
    try:
        return choices(value)
    except ValueError as error:
        raise wrong(name, "one of " + ", ".join(choices), value) from error


def wrong(name: str, rule: str, value: object) -> ValueError:
    """Return the error for a field that breaks a rule."""
    got = repr(value)
    return ValueError(f"{name} must be {rule} (got {got if len(got) <= 80 else got[:80] + '...'})")
