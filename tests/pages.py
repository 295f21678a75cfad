"""Pages of the documentation, and their blocks for copying."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def text(page: str) -> str:
    """Return a page, such as `how-to/secure.md`."""
    return (DOCS / page).read_text()


def blocks(page: str, language: str = "sh") -> list[str]:
    """Return the blocks of a language, as they are printed."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def section(page: str, title: str) -> str:
    """Return the text under a title, up to the next title of its level or above.

    Raises:
        AssertionError: the page has no such title, or has it twice.
    """
    sections = re.findall(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text(page), re.DOTALL | re.MULTILINE
    )
    assert len(sections) == 1, f"{page} has {len(sections)} sections {title!r}"
    (level, body) = sections[0]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]
