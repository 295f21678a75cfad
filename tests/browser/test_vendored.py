"""The libraries of the page are those of npm, and the page names no other host."""

import hashlib
import re
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "console_service/static"
VENDOR = STATIC / "vendor"
SOURCES = [
    path
    for path in STATIC.rglob("*")
    if path.suffix in (".js", ".html", ".css", ".svg") and VENDOR not in path.parents
]


def test_vendored_files_are_unchanged() -> None:
    lines = (line.split("  ") for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    expected = {name: digest for digest, name in lines}
    files = {p.name: p for p in VENDOR.iterdir() if p.suffix in (".mjs", ".js", ".css")}
    assert {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    } == expected


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(STATIC)))
def test_the_page_names_no_other_host(source: Path) -> None:
    named = set(re.findall(r"https?://[^\s\"'`)]+", source.read_text()))
    assert named <= {"http://www.w3.org/2000/svg"}  # a namespace, which nobody fetches


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(STATIC)))
def test_no_text_becomes_markup(source: Path) -> None:
    text = source.read_text()
    assert "innerHTML" not in text
    assert "dangerouslySetInnerHTML" not in text
