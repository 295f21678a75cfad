"""Weights that an exporter put beside the ONNX file, read into memory before the session is made.

ONNX Runtime would map these files for as long as the session lives: who then copies a new version
over one of them ends the process with SIGBUS, or changes the weights of a model that runs.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

# Of a tensor: key "location" and a value of so many bytes (protobuf fields 1 and 2 of an entry).
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")
_LONGEST = 12 + 127
_WINDOW = 1024 * 1024  # bytes; a search keeps every other thread of the process waiting


def find_names(content: bytes) -> list[str]:
    """Returns the names of the files that an ONNX file says its weights are in, each once."""
    found: set[bytes] = set()
    for at in range(0, len(content), _WINDOW):
        window = content[at : at + _WINDOW + _LONGEST]
        here = (match for match in _LOCATION.finditer(window) if match.start() < _WINDOW)
        found |= {window[match.end() : match.end() + match[1][0]] for match in here}
    return sorted(name.decode(errors="replace") for name in found)


def read_beside(path: Path, content: bytes, options: "onnxruntime.SessionOptions") -> list[bytes]:
    """Makes ONNX Runtime take the weights beside a model from memory.

    Files that are not there are left to ONNX Runtime, which says so.

    Args:
        path: of the ONNX file.
        content: of the same.
        options: is changed.

    Returns:
        What must be kept until the session is made.

    Raises:
        OSError: a file cannot be read.
    """
    names = [name for name in find_names(content) if (path.parent / name).is_file()]
    held = [(path.parent / name).read_bytes() for name in names]
    if names:
        options.add_external_initializers_from_files_in_memory(
            names, held, [len(each) for each in held]
        )
    return held
