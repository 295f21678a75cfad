"""Mistakes in parameters, told as the one error that a caller can mend first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from servicekit.errors import SightlineError, invalid
from servicekit.settings import did_you_mean

_SHOWN = 128
"""Characters of a refused value that a message repeats."""


def refused(
    errors: Sequence[Mapping[str, Any]], place: str, known: Iterable[str]
) -> SightlineError:
    """Return the error for the first of pydantic's mistakes.

    Args:
        errors: pydantic's descriptions, at least one.
        place: `query`, `form`, `path` or `body`.
        known: names of the parameters that there are.
    """
    error = errors[0]
    loc = [str(part) for part in error["loc"] if part != place]
    name = loc[0] if loc else place
    if error["type"] == "extra_forbidden":
        return invalid(
            name,
            f"is no parameter here{did_you_mean(name, known)}",
            reason="UNKNOWN_PARAMETER",
        )
    rule = str(error["msg"]).removeprefix("Value error, ")
    rule = rule.replace("Input should", "must").replace("Field required", "must be given")
    given = error.get("input")
    got = "" if given is None or error["type"] == "missing" else f", got {str(given)[:_SHOWN]!r}"
    return invalid(name, f"{rule[:1].lower()}{rule[1:]}{got}")
