"""Extension of Griffe: examples of a docstring are programs, not prose.

The docstrings say `Example:`. Griffe knows `Examples:` only, and would read the programs of the
former as Markdown.
"""

import re

import griffe

_SECTION = re.compile(r"^( *)Example:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Renames the section in every docstring that has it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rename the section of one object's docstring."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub(r"\1Examples:", obj.docstring.value)
