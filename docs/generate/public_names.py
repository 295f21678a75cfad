"""The reference of the Python names that `sightline` exports, for mkdocstrings to fill."""

import inspect

import sightline

INTRO = """# Python

This page lists every name that `from sightline import ...` gives, with its arguments and what it
raises. It is made from the docstrings. The stubs of the contract are in `sightline.ingest.v1`,
`sightline.inference.v1` and `sightline.types.v1`; [RPCs and messages](rpcs.md) describes them.
"""


def page() -> str:
    """Return the page: classes, errors and functions, each by name."""
    groups: dict[str, list[str]] = {"Classes": [], "Errors": [], "Functions": []}
    for name in sorted(sightline.__all__):
        groups[_group(getattr(sightline, name))].append(name)
    parts = [INTRO]
    for title, names in groups.items():
        parts.append(f"## {title}")
        parts += [f"::: sightline.{name}" for name in names]
    return "\n\n".join(parts) + "\n"


def _group(value: object) -> str:
    if inspect.isclass(value):
        return "Errors" if issubclass(value, Exception) else "Classes"
    return "Functions"
