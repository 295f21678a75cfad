"""Tests of names and docstrings: a class name is unique, and a docstring starts as our style asks.

A reader who searches for a class name finds one class. A docstring starts with a verb or a noun
phrase and not with a question word.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("console_service", "edge", "ingest_service", "inference_service"),
    *("servicekit", "vision", "sightline"),
    *("bench", "examples", "models"),
)
OPENINGS = frozenset(
    (
        *("What", "Who", "Whether", "How", "Where", "Which", "When"),
        *("Says", "Takes", "Lets", "Tells", "Gives"),
    )
)


@cache
def sources() -> Mapping[str, ast.Module]:
    """Return the modules of all folders by their path from the root."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for path in paths
        if "node_modules" not in path.parts
    }


def docstrings(module: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions, and its attributes."""
    for node in ast.walk(module):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text.strip()


def with_question_words() -> list[str]:
    """Return the first lines of docstrings that open with one of the words, with their paths."""
    return [
        f"{path}: {text.splitlines()[0]}"
        for path, module in sources().items()
        for text in docstrings(module)
        if text and text.split(maxsplit=1)[0] in OPENINGS
    ]


def test_every_folder_is_read() -> None:
    assert {path.split("/")[0] for path in sources()} == set(FOLDERS)


def test_no_class_name_exists_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, module in sources().items():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_docstring_opens_with_a_question_word() -> None:
    assert with_question_words() == []
