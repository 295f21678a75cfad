"""Pages of the documentation, and the blocks that they ask people to copy."""

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
    """Return what stands under a title, up to the next one of its level or above.

    Raises:
        AssertionError: the page has no such title, or has it twice.
    """
    found = re.findall(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text(page), re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1, f"{page} has {len(found)} sections {title!r}"
    (level, body) = found[0]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]
