"""Names of files as text: valid, short enough, and different where the names are."""

import json
import os
import subprocess
import sys

import pytest

from servicekit.names import readable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"part-1.jpg", "part-1.jpg"),
        ("Teil-ä-零.jpg".encode(), "Teil-ä-零.jpg"),
        (b"part-\xff.jpg", r"part-\xff.jpg"),
        ("ä".encode("latin-1") + b".jpg", r"\xe4.jpg"),
        ("ä".encode() + b"\xc3.jpg", r"ä\xc3.jpg"),  # text beside bytes that are none
        (b"back\\slash.jpg", "back\\slash.jpg"),
    ],
)
def test_bytes_that_are_no_text_are_escaped_and_text_stays(name: bytes, text: str) -> None:
    assert readable(os.fsdecode(name)) == text


def test_a_surrogate_that_stands_for_no_byte_is_escaped() -> None:
    assert readable("a\ud800ä") == r"a\ud800ä"


def test_long_names_keep_their_end_and_stay_different() -> None:
    names = [f"{number}/{'ä' * 300}/part.jpg" for number in range(50)]
    short = [readable(name, 512) for name in names]
    assert len(set(short)) == 50
    for name, text in zip(names, short, strict=True):
        assert 510 <= len(text.encode()) <= 512
        assert text[0] == text[17] == "~"
        assert name.endswith(text[18:])
    assert readable("a" * 512, 512) == "a" * 512
    assert len(readable("a" * 513, 512)) == 512


def test_a_name_is_the_same_text_in_every_locale() -> None:
    names = [b"\xc3\xa4", b"\xff", b"\xc3\xa4\xff"]
    code = "import json, os; from servicekit.names import readable\n"
    code += f"print(json.dumps([readable(os.fsdecode(name)) for name in {names}]))"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out) == ["ä", r"\xff", r"ä\xff"]
